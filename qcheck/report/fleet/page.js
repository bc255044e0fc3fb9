"use strict";
(() => {
  const body = document.querySelector("#cases tbody");
  const search = document.querySelector("#text");
  const selects = [...document.querySelectorAll("select[data-name]")];
  const count = document.querySelector("#count");
  const rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));

  const fragment = () => {
    const chosen = new URLSearchParams();
    if (search.value) chosen.set("q", search.value);
    for (const select of selects) if (select.value) chosen.set(select.dataset.name, select.value);
    return chosen.toString();
  };

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, text } of rows) {
      const fits = selects.every((select) => !select.value || row.dataset[select.dataset.name] === select.value)
        && words.every((word) => text.includes(word));
      if (row.hidden === fits) row.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown === rows.length ? `${shown} cases` : `${shown} of ${rows.length} cases`;
    history.replaceState(null, "", `#${fragment()}`);
  };

  const value = (row, column, kind) => {
    const cell = row.cells[column];
    if (kind === "rank") return Number(cell.dataset.value);
    if (kind === "number") return cell.textContent ? Number(cell.textContent) : Infinity;
    return cell.textContent.toLowerCase();
  };

  const sort = (button) => {
    const head = button.closest("th");
    const column = head.cellIndex;
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const keyed = rows.map((entry) => ({ entry, key: value(entry.row, column, button.dataset.kind) }));
    keyed.sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0) * (ascending ? 1 : -1));
    body.append(...keyed.map(({ entry }) => entry.row));
  };

  const restore = () => {
    const chosen = new URLSearchParams(location.hash.slice(1));
    search.value = chosen.get("q") ?? "";
    for (const select of selects) select.value = chosen.get(select.dataset.name) ?? "";
    filter();
  };

  search.addEventListener("input", filter);
  for (const select of selects) select.addEventListener("change", filter);
  for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sort(button));
  if (location.hash) restore();
})();
