"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const list = document.querySelector(".probes");
  if (!list) return;
  const probes = all(".probe", list);
  const [search, group, order, outside, count] = ["probe-search", "probe-group", "probe-order", "probe-outside", "probe-count"].map((id) => document.getElementById(id));
  const shown = () => Number(document.documentElement.dataset.shown);
  const number = (probe) => Number(probe.dataset.probe);
  const survival = (probe) => data.survivals[shown()][number(probe)] ?? null;

  function isOutside(probe) {
    const [low, high] = data.allowed[shown()], value = survival(probe);
    return value === null || (low !== null && value < low) || (high !== null && value > high);
  }

  function matches(probe) {
    const prompt = probe.querySelector("h3").textContent.toLowerCase();
    return prompt.includes(search.value.trim().toLowerCase()) && (!group || !group.value || probe.dataset.group === group.value) && (!outside.checked || isOutside(probe));
  }

  function arrange() {
    const far = (probe) => { const value = survival(probe); return value === null ? Infinity : Math.abs(value - 1); };
    const before = order.value === "far" ? (a, b) => far(b) - far(a) || number(a) - number(b) : (a, b) => number(a) - number(b);
    list.prepend(...probes.sort(before));
    for (const probe of probes) probe.hidden = !matches(probe);
    count.textContent = `${probes.filter((probe) => !probe.hidden).length} of ${probes.length} probes`;
  }
  for (const control of [search, group, order, outside]) if (control) control.addEventListener("input", arrange);

  for (const probe of probes) probe.querySelector(".enlarge").addEventListener("click", () => enlarge(probe));

  const large = document.getElementById("large");
  let enlarged = null;
  function enlarge(probe) {
    const pictures = all("img", probe).filter((picture) => picture.checkVisibility());
    large.querySelector("h3").textContent = `Probe ${number(probe) + 1}: ${probe.querySelector(".prompt").textContent}`;
    large.querySelector(".pair").replaceChildren(...pictures.map(enlargedFigure));
    enlarged = probe;
    large.showModal();
  }
  large.addEventListener("close", () => enlarged && enlarged.querySelector(".enlarge").focus());

  function enlargedFigure(picture) {
    const figure = document.createElement("figure");
    const copy = figure.appendChild(document.createElement("img"));
    copy.src = picture.src;
    copy.alt = picture.alt;
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.textContent = `${picture.alt.split(", probe")[0]} `;
    if (picture.dataset.full) {
      const link = caption.appendChild(document.createElement("a"));
      link.href = picture.dataset.full;
      link.textContent = "full size";
    }
    return figure;
  }

  // An address names a scheme and a probe: #scheme-2/probe-3
  const address = (probe) => `#${data.survivals.length > 1 ? `scheme-${shown() + 1}/` : ""}probe-${number(probe) + 1}`;
  function go() {
    const asked = location.hash.match(/^#(?:scheme-(\d+)\/?)?(?:probe-(\d+))?$/);
    if (!asked) return;
    if (asked[1] && data.survivals[asked[1] - 1]) document.dispatchEvent(new CustomEvent("pick", { detail: asked[1] - 1 }));
    const probe = asked[2] && document.getElementById(`probe-${asked[2]}`);
    if (!probe) return;
    if (probe.hidden) { search.value = ""; outside.checked = false; if (group) group.value = ""; arrange(); }
    probe.focus();
    probe.scrollIntoView({ block: "start" });
  }
  list.addEventListener("click", (event) => {
    const link = event.target.closest("h3 a");
    if (!link) return;
    event.preventDefault();
    location.hash = address(link.closest(".probe"));
    go();
  });
  addEventListener("hashchange", go);

  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const here = document.activeElement.closest(".probe");
    const visible = all(".probe", list).filter((probe) => !probe.hidden);
    const next = { j: 1, k: -1 }[event.key];
    if (next) {
      const other = visible[visible.indexOf(here) + next];
      if (other) { other.focus(); other.scrollIntoView({ block: "nearest" }); }
    } else if (event.key === "o" && here) {
      enlarge(here);
    } else if (event.key === "c") {
      document.dispatchEvent(new CustomEvent("pick", { detail: (shown() + 1) % data.survivals.length }));
    } else if (event.key === "f") {
      document.getElementById("maps")?.click();
    } else return;
    event.preventDefault();
  });

  document.addEventListener("shown", arrange);
  arrange();
  go();
})();
