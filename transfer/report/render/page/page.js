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
// Copy a text of the page: the named one, or the command beside the button. Without a clipboard it is selected.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const source = button.dataset.copy ? document.getElementById(button.dataset.copy) : button.previousElementSibling;
  const name = button.textContent;
  try {
    await navigator.clipboard.writeText(source.value ?? source.textContent);
  } catch {
    source.hidden = false;
    getSelection().selectAllChildren(source);
    source.select?.();
    if (!document.execCommand("copy")) return;
    source.hidden = source.tagName === "TEXTAREA";
  }
  button.textContent = "copied";
  setTimeout(() => (button.textContent = name), 1500);
});
// Pictures enlarged: the arrow keys go along the row of the table and to the next one.
const dialog = document.querySelector("dialog");
const photos = [...document.querySelectorAll(".photos button")];
let shown = 0;
const enlarge = (index) => {
  shown = Math.min(Math.max(index, 0), photos.length - 1);
  const picture = photos[shown].firstElementChild.cloneNode();
  const caption = document.createElement("figcaption");
  caption.textContent = picture.dataset.caption;
  dialog.querySelector("figure").replaceChildren(picture, caption);
  if (!dialog.open) dialog.showModal();
};
photos.forEach((button, index) => button.addEventListener("click", () => enlarge(index)));
dialog?.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) enlarge(shown + step);
});
dialog?.addEventListener("close", () => photos[shown].focus());
// On paper nothing can be opened.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
