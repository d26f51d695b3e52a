for (const button of document.querySelectorAll(".chips button")) {
  button.addEventListener("click", () => {
    const off = button.classList.toggle("off");
    button.setAttribute("aria-pressed", String(!off));
    for (const series of document.querySelectorAll("g.series")) {
      if (series.dataset.series === button.dataset.series) series.classList.toggle("off", off);
    }
  });
}
