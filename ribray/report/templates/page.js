"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  const content = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (first, second) => {
    if (typeof first === "number" && typeof second === "number") return first - second;
    return String(first).localeCompare(String(second), undefined, { numeric: true });
  };
  headings.forEach((heading, column) => {
    const isNumber = heading.classList.contains("num");
    const order = isNumber ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
    heading.querySelector("button").addEventListener("click", () => {
      const next = order[(order.indexOf(heading.getAttribute("aria-sort")) + 1) % order.length];
      for (const each of headings) each.setAttribute("aria-sort", each === heading ? next : "none");
      const sign = next === "descending" ? -1 : 1;
      const unknown = (row) => isNumber && row.cells[column].dataset.value === undefined;
      const rows = next === "none" ? original : original.slice().sort((a, b) =>
        unknown(a) - unknown(b) || sign * compare(content(a, column), content(b, column)));
      body.append(...rows);
    });
  });
}
