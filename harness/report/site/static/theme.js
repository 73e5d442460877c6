// Light, dark or as the system says; remembered where the browser allows it. In the head, so that no page flashes.
"use strict";
(() => {
  const KEY = "harness-theme";
  const root = document.documentElement;

  const read = () => {
    try { return localStorage.getItem(KEY) || ""; } catch { return ""; }
  };
  const keep = (name) => {
    try { localStorage.setItem(KEY, name); } catch { /* the choice then holds for this page only */ }
  };
  const apply = (name) => {
    root.dataset.theme = name;
    document.dispatchEvent(new Event("themechange"));
  };

  apply(read());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(root.dataset.theme));
  document.addEventListener("DOMContentLoaded", () => {
    const choice = document.getElementById("theme");
    choice.value = root.dataset.theme;
    choice.parentElement.hidden = false;
    choice.addEventListener("change", () => { keep(choice.value); apply(choice.value); });
  });
})();
