// A table that is wider than the screen says so, until it has been scrolled to its end.
"use strict";
(() => {
  const watch = (box) => {
    const hint = document.createElement("p");
    hint.className = "hint small";
    hint.setAttribute("aria-hidden", "true"); // a screen reader goes through all columns anyway
    hint.textContent = "More columns to the right: scroll the table sideways →";
    box.before(hint);
    const look = () => {
      const isMore = box.scrollLeft + box.clientWidth < box.scrollWidth - 2;
      box.classList.toggle("more", isMore);
      hint.hidden = box.scrollWidth <= box.clientWidth + 2; // stays while scrolling, so that nothing jumps
    };
    box.addEventListener("scroll", look, { passive: true });
    new ResizeObserver(look).observe(box);
    if (box.firstElementChild) new ResizeObserver(look).observe(box.firstElementChild);
    look();
  };
  for (const box of document.querySelectorAll(".scroll")) watch(box);
})();
