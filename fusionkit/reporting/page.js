// a click on the title of a column sorts its table: numbers high to low first, then the other way
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const title = button.closest("th"), table = title.closest("table"), body = table.tBodies[0];
    const column = title.cellIndex, down = title.getAttribute("aria-sort") !== "descending";
    const value = row => row.cells[column].dataset.value ?? "";
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const both = x - y;
      return (Number.isNaN(both) ? -x.localeCompare(y) : both) * (down ? -1 : 1);
    };
    body.append(...[...body.rows].sort(order));
    for (const other of title.parentElement.cells) other.removeAttribute("aria-sort");
    title.setAttribute("aria-sort", down ? "descending" : "ascending");
  });
}
// the box of a wide table says on which sides the table goes on
for (const box of document.querySelectorAll(".scroll")) {
  const tell = () => {
    box.parentElement.classList.toggle("more-left", box.scrollLeft > 1);
    box.parentElement.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  };
  box.addEventListener("scroll", tell, { passive: true });
  new ResizeObserver(tell).observe(box);
}
