(() => {
  const table = document.getElementById("case-table");
  if (!table) return;
  const body = table.tBodies[0], rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const value = (row, i, kind) => {
    const text = row.cells[i].textContent.trim();
    if (kind !== "number") return text.toLocaleLowerCase();
    const number = parseFloat(text.replace("−", "-"));
    return number === number ? number : -Infinity;
  };
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ||
        (head.dataset.kind === "number" && head.getAttribute("aria-sort") !== "descending");
      heads.forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = rows.map((row, place) => [value(row, i, head.dataset.kind), place, row]);
      keyed.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0) * (down ? -1 : 1) || a[1] - b[1]);
      body.append(...keyed.map(k => k[2]));
    });
  });
  const find = document.getElementById("find"), wrong = document.getElementById("only-wrong");
  const texts = rows.map(row => row.textContent.toLocaleLowerCase());
  const choose = () => {
    const wanted = find.value.trim().toLocaleLowerCase();
    let left = 0;
    rows.forEach((row, i) => {
      const fits = texts[i].includes(wanted) && !(wrong && wrong.checked && !row.classList.contains("wrong"));
      row.hidden = !fits;
      left += fits;
    });
    document.getElementById("shown").textContent = left + " / " + rows.length;
  };
  find.addEventListener("input", choose);
  if (wrong) wrong.addEventListener("change", choose);
  document.getElementById("filter").hidden = false;
  choose();
})();
