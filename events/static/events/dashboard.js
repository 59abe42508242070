// The live dashboard: fetches what changed every two seconds while somebody looks, and draws the charts.
"use strict";

const page = document.getElementById("dashboard");
const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 1 : 0)} s`);
const percent = (value) => `${Math.round(value * 100)} %`;
/** Minutes between two labels of the time axis: round ones, which a reader can count with. */
const ROUND = [5, 10, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720];
/** Pixels that a label needs. */
const LABEL_WIDTH = 52;
/** Bars that are shown at least: a service that began a minute ago shows a quarter of an hour, and one bar in it. */
const FEWEST_BARS = 15;
const compact = new Intl.NumberFormat("en", { notation: "compact" });

function colour(name) {
    // Resolved by the browser, since a canvas knows no CSS variables.
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    page.append(probe);
    const resolved = getComputedStyle(probe).color;
    probe.remove();
    return resolved;
}

/** Keeps the ticks at round times, as many as there is room for. */
function roundTimes(axis) {
    const { labels } = axis.chart.data;
    const step = axis.chart.minutesPerBar;
    const room = Math.max(2, Math.floor(axis.chart.width / LABEL_WIDTH) - 1);
    const apart = ROUND.find((minutes) => (labels.length * step) / minutes <= room) || 720;
    axis.ticks = axis.ticks.filter(({ value }) => {
        const [hour, minute] = labels[value].split(":").map(Number);
        return (hour * 60 + minute) % apart === 0;
    });
}

/** Leaves out the time before the first event, so that a young service is no sliver at the end of an empty chart. */
function sinceTheFirst(data) {
    const events = data.unique.map((count, bar) => count + data.duplicates[bar]);
    const first = events.findIndex((count) => count > 0);
    const begin = Math.max(0, Math.min(first - 1, events.length - FEWEST_BARS));
    const series = ["times", "unique", "duplicates", "share", "p50", "p99"];
    return { ...data, ...Object.fromEntries(series.map((name) => [name, data[name].slice(begin)])) };
}

function options(format, more = {}) {
    return {
        // Room for the last label, which is centred under its bar.
        layout: { padding: { right: 8 } },
        animation: false,
        responsive: true,
        maintainAspectRatio: false,
        interaction: { mode: "index", intersect: false },
        plugins: {
            // It would paint over ours what it thinks has none.
            colors: { enabled: false },
            legend: { display: false },
            tooltip: {
                callbacks: {
                    label: (item) => ` ${item.dataset.label}: ${format(item.parsed.y)}`,
                },
            },
        },
        scales: {
            x: {
                stacked: more.stacked,
                grid: { display: false },
                border: { display: false },
                afterBuildTicks: roundTimes,
                ticks: { maxRotation: 0, autoSkip: false },
            },
            y: {
                stacked: more.stacked,
                beginAtZero: true,
                suggestedMax: more.suggestedMax,
                border: { display: false },
                ticks: { maxTicksLimit: 5, callback: more.tick || format, precision: more.precision },
            },
        },
    };
}

/** Faint and dashed where minutes without events lie between two values: a line, but not one of values. */
const overGaps = (solid, gap) => (context) => (context.p0.skip || context.p1.skip ? gap : solid);

function line(label) {
    return {
        label,
        data: [],
        borderWidth: 2,
        pointHitRadius: 8,
        spanGaps: true,
        segment: { borderDash: overGaps(undefined, [2, 4]), borderWidth: overGaps(2, 1) },
    };
}

function bars(label, extra = {}) {
    return { label, data: [], barPercentage: 0.9, categoryPercentage: 0.95, borderRadius: 1, maxBarThickness: 28, ...extra };
}

const perMinute = (value) => (value < 10 && value % 1 ? value.toFixed(1) : compact.format(Math.round(value)));
const charts = {
    events: {
        chart: ["bar", [bars("unique"), bars("duplicate")], options(perMinute, { stacked: true, suggestedMax: 4 })],
        fill: (data) => [data.unique, data.duplicates],
        colours: ["--unique", "--duplicate"],
    },
    share: {
        chart: ["bar", [bars("duplicates")], options(percent, { suggestedMax: 0.2 })],
        fill: (data) => [data.share],
        colours: ["--duplicate"],
    },
    delay: {
        chart: ["line", [line("p50"), line("p99")], options(seconds, { suggestedMax: 0.1 })],
        fill: (data) => [data.p50, data.p99],
        colours: ["--unique", "--duplicate"],
    },
};

function paint(entry, type, datasets) {
    datasets.forEach((set, index) => {
        set.borderColor = colour(entry.colours[index]);
        set.backgroundColor = set.borderColor;
        // Points that stand alone have no line to be seen by.
        if (type === "line") {
            set.pointBackgroundColor = set.borderColor;
            set.pointRadius = (context) => {
                const values = context.dataset.data;
                const alone = values[context.dataIndex - 1] == null && values[context.dataIndex + 1] == null;
                return alone ? 2.5 : 0;
            };
        }
    });
}

function dress(entry) {
    const { drawn } = entry;
    paint(entry, drawn.config.type, drawn.data.datasets);
    const { x, y } = drawn.options.scales;
    x.ticks.color = y.ticks.color = colour("--soft");
    y.grid.color = colour("--line");
}

function draw(all) {
    const data = sinceTheFirst(all);
    for (const [name, entry] of Object.entries(charts)) {
        if (!entry.drawn) {
            const [type, datasets, chartOptions] = entry.chart;
            const canvas = document.getElementById(`chart-${name}`);
            // Before it is made: bars keep the colours they were first given.
            paint(entry, type, datasets);
            entry.drawn = new Chart(canvas, { type, data: { labels: [], datasets }, options: chartOptions });
            entry.drawn.minutesPerBar = data.step;
            dress(entry);
        }
        entry.drawn.data.labels = data.times;
        entry.fill(data).forEach((values, index) => {
            entry.drawn.data.datasets[index].data = values;
        });
        entry.drawn.update("none");
    }
}

let before;

function showRate(data) {
    if (before && data.at > before.at && data.received >= before.received) {
        const rate = (data.received - before.received) / (data.at - before.at);
        document.getElementById("rate").textContent = rate ? `+${compact.format(Math.ceil(rate))} a second` : "none just now";
    }
    before = data;
}

function replace(fresh, id) {
    const shown = document.getElementById(id);
    const next = fresh.getElementById(id);
    // What has the keyboard's focus stays until the focus has moved on.
    if (shown.innerHTML !== next.innerHTML && !shown.contains(document.activeElement)) {
        shown.innerHTML = next.innerHTML;
    }
}

function say(text, stale) {
    const place = document.getElementById("refreshed");
    if (place.textContent !== text) place.textContent = text;
    place.classList.toggle("stale", stale);
}

async function refresh() {
    const answer = await fetch(page.dataset.url, { headers: { Accept: "text/html" }, redirect: "manual" });
    if (answer.type === "opaqueredirect" || answer.status === 403) {
        say("You are logged out. Reload this page to log in again.", true);
        return false;
    }
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    replace(fresh, "live-head");
    replace(fresh, "live-lists");
    const data = JSON.parse(fresh.getElementById("charts").textContent);
    draw(data);
    showRate(data);
    const verdict = document.getElementById("verdict").textContent;
    document.title = document.title.replace(/^\s*[^·]+·/, `${verdict} ·`);
    say("Times are UTC. This page refreshes itself.", false);
    return true;
}

async function run() {
    let going = true;
    while (going) {
        await new Promise((done) => setTimeout(done, Number(page.dataset.refresh)));
        if (document.hidden) continue;
        try {
            going = await refresh();
        } catch (error) {
            say("The service does not answer; what you see is old. Trying again.", true);
        }
    }
}

if (page) {
    Chart.defaults.font.family = "Inter, system-ui, sans-serif";
    Chart.defaults.font.size = 11;
    const first = JSON.parse(document.getElementById("charts").textContent);
    draw(first);
    before = first;
    new MutationObserver(() => {
        for (const entry of Object.values(charts)) {
            dress(entry);
            entry.drawn.update("none");
        }
    }).observe(document.documentElement, { attributes: true, attributeFilter: ["class"] });
    run();
}
