// The scatter plots of the leaderboards and the dev curve of a cell, drawn by Chart.js from the JSON beside them.
"use strict";
(() => {
  const MARKERS = {
    o: ["circle", 0], s: ["rect", 0], D: ["rectRot", 0], P: ["cross", 0], X: ["crossRot", 0],
    "^": ["triangle", 0], v: ["triangle", 180], "<": ["triangle", 270], ">": ["triangle", 90],
  };
  const DASHES = [[6, 3], [2, 3], [10, 3], [8, 3, 2, 3]];
  const FONT = 12;
  const LONGEST = 28;
  const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const compact = new Intl.NumberFormat("en", { notation: "compact" });

  const colours = (canvas) => {
    const style = getComputedStyle(canvas);
    return { text: style.color, line: style.borderTopColor, back: getComputedStyle(document.body).backgroundColor };
  };

  // points that no other beats with a lower or equal cost, cheapest first
  const front = (points) => {
    const kept = [];
    for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) {
      if (!kept.length || point.y > kept[kept.length - 1].y) kept.push(point);
    }
    return kept;
  };

  // a front for the rows of each k, as [title, points]; one without a title where rows are not few-shot
  const fronts = (points) => [...new Set(points.map((point) => point.group))]
    .map((group) => [group, front(points.filter((point) => point.group === group))]);

  // room for the points and their intervals; no score is above 100
  const scoreLimits = (points) => {
    const values = points.flatMap((point) => [point.y, ...(point.interval || [])]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low) * 0.08 || 1;
    return { min: low - room, max: Math.min(100, high + room) };
  };

  const costLimits = (points) => {
    const values = points.map((point) => point.x);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    if (high / low > 10) return { type: "logarithmic", min: low / 1.7, max: high * 1.7 };
    const room = (high - low) * 0.15 || high * 0.1 || 1;
    return { type: "linear", min: Math.max(0, low - room), max: high + room };
  };

  // a power of ten, or where there are few of these 2 and 5 too
  const tick = (axis) => (value) => {
    if (axis.type === "linear") return number.format(value);
    const lead = value / 10 ** Math.floor(Math.log10(value) + 1e-9);
    const wanted = axis.max / axis.min > 1000 ? [1] : [1, 2, 5];
    return wanted.some((digit) => Math.abs(lead - digit) < 1e-6) ? compact.format(value) : null;
  };

  const overlaps = (a, b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;

  // names beside their points where there is room; the others show theirs when pointed at
  const drawLabels = (chart, points, floors) => {
    const { ctx, chartArea: area, scales } = chart;
    ctx.font = `${FONT}px system-ui, sans-serif`;
    const places = points.map((p) => ({ x: scales.x.getPixelForValue(p.x), y: scales.y.getPixelForValue(p.y) }));
    const taken = places.map((p) => ({ x: p.x - 6, y: p.y - 6, w: 12, h: 12 }));
    const look = colours(chart.canvas);
    const put = (name, candidates) => {
      const text = name.length > LONGEST ? `${name.slice(0, LONGEST - 1)}…` : name;
      const w = ctx.measureText(text).width;
      for (const [x, y, align] of candidates) {
        const box = { x: x - w * align, y: y - FONT / 2, w, h: FONT };
        const inside = box.x >= area.left && box.x + w <= area.right && box.y >= area.top && box.y + FONT <= area.bottom;
        if (inside && !taken.some((other) => overlaps(box, other))) {
          taken.push(box);
          ctx.textBaseline = "middle";
          ctx.textAlign = "left";
          ctx.strokeStyle = look.back; // a rim, so that no line strikes a name through
          ctx.lineWidth = 4;
          ctx.strokeText(text, box.x, y);
          ctx.fillStyle = look.text;
          ctx.fillText(text, box.x, y);
          return;
        }
      }
    };
    points.forEach((p, i) => {
      const { x, y } = places[i];
      put(p.name, [[x + 9, y, 0], [x - 9, y, 1], [x, y - 14, 0.5], [x, y + 14, 0.5], [x + 7, y - 12, 0],
        [x - 7, y - 12, 1], [x + 7, y + 12, 0], [x - 7, y + 12, 1], [x, y - 28, 0.5], [x, y + 28, 0.5]]);
    });
    for (const floor of floors) {
      const y = scales.y.getPixelForValue(floor.y);
      put(floor.name, [[area.left + 4, y - 8, 0], [area.right - 4, y - 8, 1], [area.left + 4, y + 9, 0]]);
    }
  };

  const line = (ctx, x0, y0, x1, y1, colour, dash) => {
    ctx.save();
    ctx.strokeStyle = colour;
    ctx.setLineDash(dash);
    ctx.beginPath();
    ctx.moveTo(x0, y0);
    ctx.lineTo(x1, y1);
    ctx.stroke();
    ctx.restore();
  };

  // intervals behind the points, and a dotted line for each row that costs nothing
  const backdrop = (points, floors) => ({
    id: "backdrop",
    beforeDatasetsDraw: ({ ctx, chartArea: area, scales: { x, y } }) => {
      for (const p of points.filter((point) => point.interval)) {
        const place = x.getPixelForValue(p.x);
        const [low, high] = p.interval.map((v) => Math.min(area.bottom, Math.max(area.top, y.getPixelForValue(v))));
        line(ctx, place, low, place, high, p.colour, []);
      }
      for (const floor of floors) {
        const place = y.getPixelForValue(floor.y);
        line(ctx, area.left, place, area.right, place, floor.colour, [2, 4]);
      }
    },
    afterDatasetsDraw: (chart) => drawLabels(chart, points, floors),
  });

  const axis = (text, look, extra) => ({
    title: { display: true, text, color: look.text },
    ticks: { color: look.text, includeBounds: false, ...extra?.ticks },
    grid: { color: look.line, ...extra?.grid },
    border: { color: look.line },
  });

  // -0.04 is shown as 0.0
  const score = (value) => (Number(value.toFixed(1)) || 0).toFixed(1);

  const describe = (point, cost) => {
    const span = point.interval ? ` [${point.interval.map(score).join(", ")}]` : "";
    return `${point.name}: ${score(point.y)}${span}, ${number.format(point.x)} ${cost}`;
  };

  const scatterChart = (canvas, points, floors, xLabel, yLabel) => {
    const look = colours(canvas);
    const range = costLimits(points);
    const styles = points.map((point) => MARKERS[point.marker]);
    return new Chart(canvas, {
      type: "scatter",
      plugins: [backdrop(points, floors)],
      data: {
        datasets: [
          {
            data: points,
            clip: false,
            pointStyle: styles.map(([style]) => style),
            pointRotation: styles.map(([, rotation]) => rotation),
            pointBackgroundColor: points.map((point) => point.colour),
            pointBorderColor: points.map((point, i) => (styles[i][0].startsWith("cross") ? point.colour : look.text)),
            pointBorderWidth: styles.map(([style]) => (style.startsWith("cross") ? 3 : 0.6)),
            pointRadius: 6,
            pointHoverRadius: 9,
          },
          ...fronts(points).map(([, data], i) => ({ data, type: "line", stepped: true, pointRadius: 0, pointHitRadius: 0,
            borderWidth: 1.5, borderColor: look.text, borderDash: DASHES[i % DASHES.length] })),
        ],
      },
      options: {
        animation: false,
        maintainAspectRatio: false,
        scales: {
          x: { ...range, ...axis(range.type === "linear" ? xLabel : `${xLabel}, logarithmic`, look,
            { ticks: { callback: tick(range), maxRotation: 0 } }) },
          y: { ...scoreLimits([...points, ...floors]), ...axis(yLabel, look) },
        },
        plugins: {
          legend: { display: false },
          tooltip: { filter: (item) => item.datasetIndex === 0, displayColors: false,
            callbacks: { label: (item) => describe(item.raw, xLabel) } },
        },
        onClick: (_, found) => {
          const hit = found.find((item) => item.datasetIndex === 0);
          if (hit) location.href = points[hit.index].href;
        },
      },
    });
  };

  const walk = (canvas, state, announce) => {
    const STEPS = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
    const order = () => state.points.map((_, i) => i).sort((a, b) => state.points[a].x - state.points[b].x);
    let at = -1;
    const mark = (active) => {
      state.chart.setActiveElements(active);
      state.chart.tooltip.setActiveElements(active, { x: 0, y: 0 });
      state.chart.update();
    };
    canvas.addEventListener("keydown", (event) => {
      if (!state.points.length) return;
      if (event.key === "Enter" && at >= 0) location.href = state.points[order()[at]].href;
      if (!(event.key in STEPS)) return;
      event.preventDefault();
      at = at < 0 ? 0 : (at + STEPS[event.key] + state.points.length) % state.points.length;
      const index = order()[at];
      mark([{ datasetIndex: 0, index }]);
      announce.textContent = describe(state.points[index], state.cost);
    });
    canvas.addEventListener("blur", () => { at = -1; mark([]); });
  };

  const select = (place, axes) => axes.forEach((item, i) => place.add(new Option(item.label, i)));

  const scatter = (figure) => {
    const data = JSON.parse(figure.querySelector(".data").textContent);
    data.x = data.x.filter((item) => item.values.some((value) => value > 0));
    data.y = data.y.filter((item) => item.values.some((value) => value !== null));
    if (!data.x.length || !data.y.length) return;
    const [canvas, xs, ys] = ["canvas", ".x", ".y"].map((name) => figure.querySelector(name));
    select(xs, data.x);
    select(ys, data.y);
    // the first score of a benchmark, its average; of all scores the one that most rows have
    const count = (item) => item.values.filter((value) => value !== null).length;
    const choose = (benchmark) => {
      const fullest = Math.max(...data.y.map(count));
      ys.value = Math.max(0, data.y.findIndex((y) => (benchmark ? y.benchmark === benchmark : count(y) === fullest)));
    };
    const state = {};
    const draw = () => {
      const [x, y] = [data.x[xs.value], data.y[ys.value]];
      const all = data.rows.map((row, i) => ({ ...row, x: x.values[i], y: y.values[i], interval: y.intervals[i] }));
      const scored = all.filter((point) => point.y !== null && point.x !== null);
      state.points = scored.filter((point) => point.x > 0);
      state.cost = x.label;
      state.chart?.destroy();
      canvas.parentElement.hidden = !state.points.length;
      if (!state.points.length) {
        figure.querySelector(".front").textContent = "No row has both this score and this cost.";
        return;
      }
      const floors = scored.filter((point) => point.x <= 0);
      state.chart = scatterChart(canvas, state.points, floors, x.label, y.label);
      const lines = fronts(state.points).map(([group, found]) =>
        `Pareto front${group && ` of ${group}`} (dashed), from cheap to good: ${found.map((p) => p.name).join(", ")}.`);
      const missing = all.length - scored.length;
      figure.querySelector(".front").textContent =
        lines.join(" ") +
        (floors.length ? ` Dotted: ${floors.map((floor) => floor.name).join(", ")}, at no cost.` : "") +
        (missing ? ` ${missing} of ${all.length} rows lack this score or this cost.` : "") +
        " A click on a point opens the page of its method.";
    };
    figure.hidden = false;
    choose("");
    draw();
    for (const choice of [xs, ys]) choice.addEventListener("change", draw);
    walk(canvas, state, figure.querySelector(".point"));
    document.addEventListener("themechange", draw);
    figure.closest("section").addEventListener("benchmark", (event) => {
      choose(event.detail);
      draw();
    });
  };

  const curve = (figure) => {
    const data = JSON.parse(figure.querySelector(".data").textContent);
    const canvas = figure.querySelector("canvas");
    let chart;
    const draw = () => {
      const look = colours(canvas);
      const series = (values) => data.steps.map((step, i) => ({ x: step, y: values[i] }));
      const dots = data.steps.map((step) => (step === data.selected ? 8 : 3));
      chart?.destroy();
      chart = new Chart(canvas, {
        type: "line",
        data: {
          datasets: [
            { label: data.label, data: series(data.dev), borderColor: "#0072B2", backgroundColor: "#0072B2",
              pointRadius: dots, yAxisID: "y" },
            { label: "training loss", data: series(data.loss), borderColor: "#D55E00", backgroundColor: "#D55E00",
              pointRadius: 2, pointStyle: "rect", borderDash: [4, 3], yAxisID: "loss" },
          ],
        },
        options: {
          animation: false,
          maintainAspectRatio: false,
          interaction: { mode: "index", intersect: false },
          scales: {
            // a tick at each evaluation; of many, those that have room
            x: { type: "linear", ...axis("step", look),
              afterBuildTicks: (scale) => { scale.ticks = data.steps.map((value) => ({ value })); } },
            y: { position: "left", ...scoreLimits(data.dev.map((y) => ({ y }))), ...axis(data.label, look) },
            loss: { position: "right", ...axis("training loss", look, { grid: { drawOnChartArea: false } }) },
          },
          plugins: { legend: { labels: { color: look.text, usePointStyle: true } } },
        },
      });
    };
    canvas.parentElement.hidden = false;
    draw();
    document.addEventListener("themechange", draw);
  };

  for (const figure of document.querySelectorAll("figure.plot")) scatter(figure);
  for (const figure of document.querySelectorAll("figure.curve")) curve(figure);
})();
