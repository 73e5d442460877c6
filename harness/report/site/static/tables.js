// Sorting, filtering, the choice of benchmark and of columns. Without this script every table is there, unsorted.
"use strict";
(() => {
  const PAGE = 50;
  const NOTHING = { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null };

  // the row of headers that has one cell per column, below the names of the benchmarks
  const heads = (element) => [...element.tHead.rows[element.tHead.rows.length - 1].cells];

  const options = (element) => ({
    autoWidth: false,
    info: false,
    order: [],
    paging: false,
    titleRow: element.tHead.rows.length - 1,
    layout: NOTHING,
    columnDefs: heads(element).map((head, i) => {
      const isNumber = head.classList.contains("number");
      return { targets: i, type: isNumber ? "num" : "string", orderSequence: isNumber ? ["desc", "asc"] : ["asc", "desc"] };
    }),
  });

  const make = (element, extra) => {
    for (const link of element.tHead.querySelectorAll("a")) {
      link.addEventListener("click", (event) => event.stopPropagation()); // a footnote, not a wish to sort
    }
    return new DataTable(element, { ...options(element), ...extra });
  };

  const list = (element) => {
    const rows = element.tBodies[0].rows.length;
    if (rows < 2) return;
    const isLong = rows > PAGE;
    make(element, {
      info: isLong,
      paging: isLong,
      pageLength: PAGE,
      language: { search: "Filter rows " },
      layout: isLong ? { ...NOTHING, topStart: "search", bottomStart: "info", bottomEnd: "paging" }
        : { ...NOTHING, topStart: "search" },
    });
  };

  const board = (element) => {
    const section = element.closest("section");
    const columns = heads(element).map(({ dataset: { label, benchmark, task } }) => ({ title: label, benchmark, task }));
    const table = make(element, {});
    const filter = section.querySelector(".filter");
    filter.addEventListener("input", () => table.search(filter.value).draw());

    const benchmark = section.querySelector("select.benchmark");
    const boxes = columnBoxes(section.querySelector(".columns fieldset"), columns);
    const show = () => {
      const chosen = benchmark ? benchmark.value : "";
      columns.forEach((column, i) => {
        const isScore = column.benchmark || column.task || column.title === "average";
        const fits = !chosen || !isScore || column.benchmark === chosen;
        boxes[i].disabled = i === 0 || !fits;
        table.column(i).visible(fits && boxes[i].checked, false);
      });
      table.columns.adjust();
      section.dispatchEvent(new CustomEvent("benchmark", { detail: chosen }));
    };
    benchmark?.addEventListener("change", show);
    for (const box of boxes) box.addEventListener("change", show);
    boxes[0].disabled = true;
    section.querySelector(".controls").hidden = false;
  };

  const columnBoxes = (place, columns) => columns.map((column) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    label.append(box, ` ${column.title}`);
    place.append(label);
    return box;
  });

  for (const element of document.querySelectorAll("table[data-kind=board]")) board(element);
  for (const element of document.querySelectorAll("table[data-kind=list]")) list(element);
})();
