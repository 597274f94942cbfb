// Each chart becomes interactive when it comes into view; until then, in print and without scripts it is the picture.
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const options = () => ({
    renderer: "svg",
    actions: { export: true, source: false, compiled: false, editor: false },
    tooltip: { theme: dark.matches ? "dark" : "light" },
  });
  const enliven = async (chart) => {
    const specification = JSON.parse(document.getElementById(`spec-${chart.dataset.chart}`).textContent);
    const drawn = document.createElement("div");
    try {
      await vegaEmbed(drawn, specification, options());
      chart.replaceChildren(drawn);
    } catch (error) {
      console.warn(`${chart.dataset.chart} stays a picture: ${error}`);
    }
  };
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      observer.unobserve(entry.target);
      enliven(entry.target);
    }
  }, { rootMargin: "400px" });
  document.querySelectorAll(".chart").forEach((chart) => observer.observe(chart));
})();
