// Nothing here is needed to read the page: it stresses a structure in the pictures, and sorts tables.
(() => {
  let pinned = null;
  const stress = (label) => {
    document.body.classList.toggle("stress", label !== null);
    document.querySelectorAll(".outlines path.lit").forEach((path) => path.classList.remove("lit"));
    if (label !== null) {
      document.querySelectorAll(`.outlines path.${CSS.escape(label)}`).forEach((path) => path.classList.add("lit"));
    }
  };
  document.querySelectorAll("button[data-label]").forEach((button) => {
    const row = button.closest("tr");
    row.addEventListener("pointerenter", () => stress(button.dataset.label));
    row.addEventListener("pointerleave", () => stress(pinned));
    button.addEventListener("click", () => {
      pinned = pinned === button.dataset.label ? null : button.dataset.label;
      document.querySelectorAll("button[data-label]").forEach((other) => {
        other.setAttribute("aria-pressed", String(other.dataset.label === pinned));
      });
      stress(pinned);
    });
  });
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number" || typeof b === "number") return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, undefined, { numeric: true });
  };
  document.querySelectorAll("table.sorts thead th").forEach((head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const upward = head.getAttribute("aria-sort") !== "ascending";
      head.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", upward ? "ascending" : "descending");
      const body = head.closest("table").tBodies[0];
      const rows = [...body.rows].sort((a, b) => compare(key(a, head.cellIndex), key(b, head.cellIndex)));
      body.append(...(upward ? rows : rows.reverse()));
    });
  });
})();
