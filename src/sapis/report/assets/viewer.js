"use strict";
(function () {
  const holder = document.getElementById("viewer");
  const source = document.getElementById("structure-data");
  if (!holder || !source) return;
  const frames = JSON.parse(source.textContent);
  const buttons = Array.from(document.querySelectorAll("#frames button"));

  function hasWebGL() {
    try {
      const canvas = document.createElement("canvas");
      return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
    } catch (error) {
      return false;
    }
  }
  if (typeof $3Dmol === "undefined" || !hasWebGL()) {
    buttons.forEach((button) => { button.disabled = true; });
    document.querySelectorAll(".hint").forEach((hint) => hint.remove());
    return;
  }

  holder.textContent = "";
  const viewer = $3Dmol.createViewer(holder, { backgroundColor: "#f6f8fa", antialias: true });
  viewer.setViewStyle({ style: "outline", color: "#2b3440", width: 0.015 });

  function point(vector) { return { x: vector[0], y: vector[1], z: vector[2] }; }
  function sum(vectors) {
    return vectors.reduce((total, v) => total.map((value, i) => value + v[i]), [0, 0, 0]);
  }
  function drawCell(cell) {
    for (let axis = 0; axis < 3; axis++) {
      const others = [0, 1, 2].filter((other) => other !== axis);
      for (const chosen of [[], [others[0]], [others[1]], others]) {
        const start = sum(chosen.map((i) => cell[i]));
        const end = sum([start, cell[axis]]);
        viewer.addCylinder({
          start: point(start), end: point(end), radius: 0.028, color: "#9aa4b1", fromCap: 1, toCap: 1,
        });
      }
    }
  }
  function centre(cell) {
    // zoomTo centres on the atoms; a cell may reach further on one side.
    const atoms = viewer.selectedAtoms({}).map((atom) => [atom.x, atom.y, atom.z]);
    const corners = [0, 1, 2, 3, 4, 5, 6, 7].map((bits) => sum(cell.filter((_, i) => bits & (1 << i))));
    const view = viewer.getView();
    for (let axis = 0; axis < 3; axis++) {
      const values = atoms.concat(corners).map((position) => position[axis]);
      view[axis] = -(Math.min(...values) + Math.max(...values)) / 2;
    }
    viewer.setView(view);
  }
  function show(index) {
    viewer.removeAllModels();
    viewer.removeAllShapes();
    viewer.addModel(frames[index].xyz, "xyz");
    viewer.setStyle({}, {
      stick: { radius: 0.13, colorscheme: "Jmol" }, sphere: { scale: 0.26, colorscheme: "Jmol" },
    });
    if (frames[index].cell) drawCell(frames[index].cell);
    viewer.zoomTo();
    if (frames[index].cell) centre(frames[index].cell);
    viewer.zoom(frames[index].cell ? 0.9 : 1.25);
    viewer.render();
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
  }
  buttons.forEach((button, i) => button.addEventListener("click", () => show(i)));
  document.getElementById("frames").addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const current = buttons.findIndex((button) => button.getAttribute("aria-pressed") === "true");
    const next = Math.min(buttons.length - 1, Math.max(0, current + move));
    buttons[next].focus();
    show(next);
  });
  show(0);
  viewer.rotate(24, "y");
  viewer.rotate(14, "x");
})();
