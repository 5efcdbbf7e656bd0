"use strict";
// Sorting by a column's head or by the list on a phone: descending, ascending, as given. Rows without a figure stay below.
for (const table of document.querySelectorAll("table.results")) {
  const body = table.tBodies[0];
  const given = [...body.rows];
  const heads = [...table.querySelectorAll("th[data-key]")];
  const list = document.querySelector(`select[data-table="${table.id}"]`);
  const figure = (row, key) => row.querySelector(`td[data-key="${key}"]`)?.dataset.value ?? "";
  const sort = (key, order) => {
    const rows = [...given];
    if (order !== "none") {
      const sign = order === "descending" ? -1 : 1;
      rows.sort((a, b) => {
        const [x, y] = [figure(a, key), figure(b, key)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (Number(x) - Number(y));
      });
    }
    body.append(...rows);
    for (const head of heads) head.setAttribute("aria-sort", head.dataset.key === key ? order : "none");
    list.value = order === "none" ? "" : key;
  };
  const next = { none: "descending", descending: "ascending", ascending: "none" };
  for (const head of heads)
    head.querySelector("button").addEventListener("click", () => sort(head.dataset.key, next[head.getAttribute("aria-sort")]));
  list.addEventListener("change", () => sort(list.value, list.value ? "descending" : "none"));
}
// A link into the provenance opens what it leads to, and the keyboard goes there too.
const reveal = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const details = target?.closest("details");
  if (!details) return;
  details.open = true;
  details.querySelector("summary").focus({ preventScroll: true });
  details.scrollIntoView();
};
addEventListener("hashchange", reveal);
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.hash === location.hash) reveal();
});
reveal();
// On paper nothing can be opened.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
