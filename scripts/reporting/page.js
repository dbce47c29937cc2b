"use strict";
(() => {
  const table = document.querySelector("table.sortable");

  const valueOf = (cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    return cell.dataset.value === undefined ? text : Number(text);
  };

  // Numbers before texts, and what is empty last, in whichever direction.
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  };

  const sortBy = (name, descending) => {
    const heads = [...table.tHead.rows[0].cells];
    const index = heads.findIndex((head) => head.dataset.column === name);
    if (index < 0) return;
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[index].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const keyed = [...table.tBodies[0].rows].map((row) => [valueOf(row.cells[index]), row]);
    keyed.sort(([a], [b]) => compare(a, b, descending ? -1 : 1));
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  };

  // #sort=loss, and #sort=-loss for the largest first: a link to the table in another order.
  const sortByAddress = () => {
    const wanted = /^#sort=(-?)(.+)$/.exec(location.hash);
    if (wanted) sortBy(decodeURIComponent(wanted[2]), wanted[1] === "-");
  };

  const showCurve = (trial) => {
    for (const curve of document.querySelectorAll("svg [data-trial]")) {
      curve.classList.toggle("shown", curve.dataset.trial === trial);
    }
  };

  if (table) {
    table.tHead.addEventListener("click", (event) => {
      const head = event.target.closest("th");
      if (head) sortBy(head.dataset.column, head.getAttribute("aria-sort") === "ascending");
    });
    table.tBodies[0].addEventListener("pointerover", (event) => {
      showCurve(event.target.closest("tr")?.dataset.trial);
    });
    table.tBodies[0].addEventListener("pointerleave", () => showCurve(undefined));
    addEventListener("hashchange", sortByAddress);
    sortByAddress();
  }

  for (const button of document.querySelectorAll("button[data-copy]")) {
    const source = document.getElementById(button.dataset.copy);
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        // A browser may forbid it to files; selected text can still be copied with the keyboard.
        getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  }
})();
