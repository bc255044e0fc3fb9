"""A board without a board: TensorRT in four faces, CUDA's runtime in C, and trtexec, all on the processor."""
