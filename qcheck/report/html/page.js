"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const views = new Map();
  let shown = 0;

  const text = { labelColor: "var(--muted)", titleColor: "var(--muted)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" };
  const config = {
    background: "transparent",
    font: "system-ui, sans-serif",
    padding: 2,
    view: { stroke: null },
    axis: { ...text, gridColor: "var(--rule)", domainColor: "var(--muted)", tickColor: "var(--muted)", tickCount: 6 },
    legend: { ...text, labelColor: "var(--ink)", symbolStrokeWidth: 2 },
    text: { fontSize: 11 },
  };

  const tip = document.getElementById("tip");
  const tell = (_, event, item, value) => {
    tip.hidden = !value;
    if (!value) return;
    tip.textContent = typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k}: ${v}`).join("\n") : String(value);
    tip.style.left = `${Math.max(0, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(0, Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8))}px`;
  };

  async function draw(element) {
    const spec = { ...data.plots[element.dataset.of][element.dataset.plot], description: element.getAttribute("aria-label") };
    const options = { mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, tooltip: tell, config };
    views.set(element, (await vegaEmbed(element, spec, options)).view);
  }

  const query = () => (search ? search.value.trim().toLowerCase() : "");
  const ask = (view) => { if ("query" in view.getState().signals) view.signal("query", query()).runAsync(); };

  async function show(index) {
    shown = index;
    document.documentElement.dataset.shown = String(index);
    document.dispatchEvent(new CustomEvent("shown"));
    for (const element of all("[data-case]")) element.hidden = Number(element.dataset.case) !== index;
    for (const button of all("[data-look]")) button.setAttribute("aria-pressed", String(Number(button.dataset.look) === index));
    if (picker) picker.value = String(index);
    await Promise.all(all(`.vega[data-of="${index}"]`).filter((element) => !views.has(element)).map(draw));
    for (const [element, view] of views) if (Number(element.dataset.of) === index) ask(view);
    if (table) {
      sorted = data.layers[index].some((row) => row.share !== undefined) ? ["share", -1] : ["snr", 1];
      fill();
    }
    document.documentElement.dataset.ready = String(index);
  }

  const picker = document.getElementById("case");
  if (picker) picker.addEventListener("change", () => show(Number(picker.value)));
  for (const button of all("[data-look]")) button.addEventListener("click", () => show(Number(button.dataset.look)));

  document.addEventListener("pick", (event) => show(event.detail));

  const FEW = 20;
  const COLUMNS = [
    ["layer", "layer"], ["kind", "kind"], ["share", "share of the gap, %"], ["weight", "by weight, %"], ["activation", "by input, %"],
    ["survival", "delta survival"], ["snr", "change over noise, dB"],
    ["alignment", "its alignment with inputs, dB"],
  ];
  const PERCENT = new Set(["share", "weight", "activation"]);
  const table = document.getElementById("layer-table");
  const search = document.getElementById("search");
  const found = document.getElementById("found");
  const more = document.getElementById("more");
  let sorted = ["snr", 1];
  let whole = false;

  const cell = (key, value) => {
    if (value === null || value === undefined) return "–";
    return typeof value === "number" ? (PERCENT.has(key) ? 100 * value : value).toPrecision(3).replace("-", "−") : value;
  };

  function fill() {
    const rows = data.layers[shown].filter((row) => row.layer.toLowerCase().includes(query()));
    const columns = COLUMNS.filter(([key]) => data.layers[shown].some((row) => row[key] !== undefined));
    const [key, sign] = sorted;  // the worst first
    const rank = (row) => (row[key] === null || row[key] === undefined ? -Infinity : row[key]);
    if (key) rows.sort((a, b) => sign * (rank(a) > rank(b) ? 1 : rank(a) < rank(b) ? -1 : 0));
    table.tHead.replaceChildren(head(columns));
    table.tBodies[0].replaceChildren(...rows.slice(0, whole ? rows.length : FEW).map((row) => line(columns, row)));
    found.textContent = `${rows.length} of ${data.layers[shown].length} layers`;
    more.hidden = whole || rows.length <= FEW;
  }

  function head(columns) {
    const row = document.createElement("tr");
    for (const [key, title] of columns) {
      const cell = row.appendChild(document.createElement("th"));
      cell.scope = "col";
      const button = cell.appendChild(document.createElement("button"));
      button.type = "button";
      button.textContent = title;
      if (key !== "layer" && key !== "kind") cell.className = "n";
      if (sorted[0] === key) cell.setAttribute("aria-sort", sorted[1] > 0 ? "ascending" : "descending");
      button.addEventListener("click", () => {
        sorted = [key, sorted[0] === key ? -sorted[1] : 1];
        fill();
        all("thead button", table)[columns.findIndex(([name]) => name === key)].focus();
      });
    }
    return row;
  }

  function line(columns, values) {
    const row = document.createElement("tr");
    for (const [key] of columns) {
      const made = row.appendChild(document.createElement(key === "layer" ? "th" : "td"));
      if (key === "layer") made.scope = "row";
      else if (key !== "kind") made.className = "n";
      made.textContent = cell(key, values[key]);
    }
    return row;
  }

  if (search) search.addEventListener("input", () => { fill(); views.forEach(ask); });
  if (more) more.addEventListener("click", () => { whole = true; fill(); search.focus(); });

  show(0);
})();
