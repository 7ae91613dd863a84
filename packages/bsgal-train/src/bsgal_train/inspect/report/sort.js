// Sort the rows of a table by the column whose heading is clicked; empty values stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headings.forEach((heading, column) => {
    const isText = column === 0;
    heading.querySelector("button").addEventListener("click", () => {
      const current = heading.getAttribute("aria-sort");
      const ascending = current ? current === "descending" : isText;
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const value = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value ?? cell.textContent;
      };
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isText ? x.localeCompare(y) : x - y;
        return ascending ? order : -order;
      });
      body.append(...rows);
    });
  });
}
