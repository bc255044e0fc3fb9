"""Scalars of a TensorBoard event file: records of TFRecord that hold ``tensorflow.Event`` messages.

A record is its length (uint64), 4 bytes of checksum, the message, and 4 bytes of checksum
(tensorflow/core/lib/io/record_writer.h); checksums are not looked at. Of the messages only the fields in ``_FIELDS``
are read (tensorflow/core/util/event.proto, framework/summary.proto, framework/tensor.proto).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qcheck.core import files

_LONGEST = 2**20  # bytes of a message that is read; those of pictures and graphs are longer
_FLOAT = 1  # DT_FLOAT, what writers of scalars take
_Field = descriptor_pb2.FieldDescriptorProto
# name, number and type of each field; those of a message's type have its name, a * is for repeated ones
_FIELDS = {
    "Event": [("step", 2, _Field.TYPE_INT64), ("summary", 5, "Summary")],
    "Summary": [("value*", 1, "Value")],
    "Value": [("tag", 1, _Field.TYPE_BYTES), ("simple_value", 2, _Field.TYPE_FLOAT), ("tensor", 8, "Tensor")],
    "Tensor": [("dtype", 1, _Field.TYPE_INT32), ("content", 4, _Field.TYPE_BYTES), ("floats*", 5, _Field.TYPE_FLOAT)],
}


def _event_class() -> Any:
    """The class of the messages."""
    described = descriptor_pb2.FileDescriptorProto(name="qcheck_event.proto", package="qcheck", syntax="proto2")
    for name, fields in _FIELDS.items():
        message = described.message_type.add(name=name)
        for field, number, kind in fields:
            label = _Field.LABEL_REPEATED if field.endswith("*") else _Field.LABEL_OPTIONAL
            type_ = {"type": kind} if isinstance(kind, int) else {"type_name": f".qcheck.{kind}"}
            message.field.add(name=field.rstrip("*"), number=number, label=label, **type_)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(described)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("qcheck.Event"))


_EVENT = _event_class()


def scalars(path: Path) -> Iterator[tuple[str, int, float]]:
    """Tag, step and value of every scalar, up to the first record that is not whole or no message.

    Raises:
        OSError: it is no regular file, or cannot be read.
    """
    for record in _records(path):
        try:
            event = _EVENT.FromString(record)
        except DecodeError:
            return
        for value in event.summary.value:
            if (number := _number(value)) is not None:
                yield value.tag.decode("utf-8", "replace"), event.step, number


def _records(path: Path) -> Iterator[bytes]:
    """The messages of a file, without those that are too long to be scalars; a length beyond the end is the end.

    Pictures are passed over, so that a file of any size takes the memory of one message.
    """
    size = files.size(path)
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack_from("<Q", head)
            end = file.tell() + length + 4
            if end > size:
                return
            if length <= _LONGEST:
                yield file.read(length)
            file.seek(end)


def _number(value: Any) -> float | None:
    """The value of a scalar, which writers keep as a number or as a tensor of one; None for anything else."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if value.tensor.dtype != _FLOAT:
        return None
    if len(value.tensor.content) == 4:
        return float(struct.unpack("<f", value.tensor.content)[0])
    return float(value.tensor.floats[0]) if len(value.tensor.floats) == 1 else None
