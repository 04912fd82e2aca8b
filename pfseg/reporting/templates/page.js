"use strict";

// Sort the table of runs by a click on a column's head; empty cells stay at the end.
for (const [column, button] of document.querySelectorAll(".runs th button").entries()) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const value = (row) => row.cells[column].dataset.v;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return descending ? -order : order;
    });
    body.append(...rows);
  });
}

// Chips of the legend hide and show their run everywhere but in the table.
const hidden = new Set();
for (const chip of document.querySelectorAll(".chip")) {
  chip.addEventListener("click", () => {
    const run = Number(chip.dataset.run);
    const show = hidden.delete(run);
    if (!show) hidden.add(run);
    chip.setAttribute("aria-pressed", String(show));
    for (const part of document.querySelectorAll(`.run.r${run}`)) part.classList.toggle("hidden", !show);
  });
}

// Values of all curves under the pointer.
function nearest(points, step) {
  let [low, high] = [0, points.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle + 1; else high = middle;
  }
  return low > 0 && step - points[low - 1][0] < points[low][0] - step ? points[low - 1] : points[low];
}

for (const figure of document.querySelectorAll(".chart")) {
  const data = JSON.parse(figure.dataset.chart);
  const [svg, cursor, readout] = ["svg", ".cursor", ".readout"].map((name) => figure.querySelector(name));
  const [low, high, left, right] = data.x;
  const leave = () => { readout.style.display = "none"; cursor.style.visibility = "hidden"; };
  const move = (event) => {
    const box = svg.getBoundingClientRect();
    const pixel = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const step = low + (Math.min(Math.max(pixel, left), right) - left) / (right - left) * (high - low);
    const rows = data.curves.filter((curve) => !hidden.has(curve.run));
    if (!rows.length) return leave();
    readout.replaceChildren(...rows.map((curve) => {
      const [at, value] = nearest(curve.points, step);
      const line = document.createElement("div");
      const dot = document.createElement("span");
      dot.className = `dot r${curve.run}`;
      line.append(dot, `${value}  ${data.over} ${at}  ${curve.name}`);
      return line;
    }));
    cursor.setAttribute("x1", pixel);
    cursor.setAttribute("x2", pixel);
    cursor.style.visibility = "visible";
    readout.style.display = "block";
    const onTheRight = event.clientX - box.left > box.width / 2;
    readout.style.left = onTheRight ? "56px" : "auto";
    readout.style.right = onTheRight ? "auto" : "16px";
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerdown", move);
  svg.addEventListener("pointerleave", leave);
}

// A click on a picture shows it over the whole width.
for (const picture of document.querySelectorAll(".samples img")) {
  const zoom = () => picture.closest("figure").classList.toggle("zoomed");
  picture.addEventListener("click", zoom);
  picture.addEventListener("keydown", (event) => { if (event.key === "Enter") zoom(); });
}
