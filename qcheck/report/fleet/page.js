"use strict";
(() => {
  const body = document.querySelector("#cases tbody");
  const search = document.querySelector("#text");
  const selects = [...document.querySelectorAll("select[data-name]")];
  const count = document.querySelector("#count");
  const more = document.querySelector("#more");
  const PART = 200; // rows that are laid out at once: all of 2,000 take half a second
  let most = PART;
  let rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));

  const fragment = () => {
    const chosen = new URLSearchParams();
    if (search.value) chosen.set("q", search.value);
    for (const select of selects) if (select.value) chosen.set(select.dataset.name, select.value);
    return chosen.toString();
  };

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let fitting = 0;
    for (const { row, text } of rows) {
      const fits = selects.every((select) => !select.value || row.dataset[select.dataset.name] === select.value)
        && words.every((word) => text.includes(word));
      const shown = fits && fitting < most;
      if (row.hidden === shown) row.hidden = !shown;
      fitting += fits;
    }
    count.textContent = fitting === rows.length ? `${fitting} cases` : `${fitting} of ${rows.length} cases`;
    more.hidden = fitting <= most;
    more.textContent = `show ${Math.max(0, fitting - most)} more`;
    const chosen = fragment();
    if (chosen !== location.hash.slice(1)) history.replaceState(null, "", chosen ? `#${chosen}` : location.pathname);
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
    rows = keyed.map(({ entry }) => entry);
    body.append(...rows.map(({ row }) => row));
    filter();
  };

  const restore = () => {
    const chosen = new URLSearchParams(location.hash.slice(1));
    search.value = chosen.get("q") ?? "";
    for (const select of selects) select.value = chosen.get(select.dataset.name) ?? "";
    filter();
  };

  const narrow = () => {
    most = PART;
    filter();
  };

  search.addEventListener("input", narrow);
  for (const select of selects) select.addEventListener("change", narrow);
  more.addEventListener("click", () => {
    most = Infinity;
    filter();
  });
  for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sort(button));
  restore();
})();
