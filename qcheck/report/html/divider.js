"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const probes = all(".probe");
  const cut = (probe, value) => {
    probe.style.setProperty("--cut", `${value}%`);
    probe.querySelector(".slider").value = value;
  };
  const follow = (picture, moved) => {
    const listener = (event) => {
      if (event.type === "pointermove" && event.pointerType === "mouse" && !event.buttons) return;
      const box = picture.getBoundingClientRect();
      moved(Math.round(Math.max(0, Math.min(100, (100 * (event.clientX - box.left)) / box.width))));
    };
    for (const kind of ["pointerdown", "pointermove"]) picture.addEventListener(kind, listener);
    picture.addEventListener("dragstart", (event) => event.preventDefault());
  };
  for (const probe of probes) {
    probe.querySelector(".slider").addEventListener("input", (event) => cut(probe, event.target.value));
    for (const picture of all(".compare", probe)) follow(picture, (value) => cut(probe, value));
  }
  const maps = document.getElementById("maps");
  if (maps) {
    const choose = () => document.documentElement.classList.toggle("maps", maps.checked);
    maps.addEventListener("change", choose);
    choose();
  }
  const every = document.getElementById("every");
  if (every) every.addEventListener("input", () => probes.forEach((probe) => cut(probe, every.value)));
})();
