const text = (row, at) => row.cells[at].textContent;
const number = (row, at) => Number(row.cells[at].dataset.value);
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, at) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows], numeric = rows.every((row) => row.cells[at].dataset.value !== undefined);
    rows.sort((one, two) => numeric ? number(one, at) - number(two, at)
      : text(one, at).localeCompare(text(two, at), "en", { numeric: true }));
    body.append(...(down ? rows.reverse() : rows));
  }));
}
const box = document.getElementById("filter");
box?.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of document.querySelectorAll("#tensors tbody tr")) {
    row.hidden = !words.every((word) => row.cells[0].textContent.toLowerCase().includes(word));
  }
});
