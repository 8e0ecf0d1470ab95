// The Switch router and its balance loss, arXiv:2101.03961v3, Eqs. (1) and (4)-(6), in plain
// JavaScript: no package, and nothing of minimoe but the vectors that it is held to.
//
//     minimoe vectors switch --out DIR
//     node switch_router.mjs DIR [--bug NAME]
//
// Every case of the Switch layer in DIR/manifest.json is computed from what its file says goes in.
// Exit code 0 where all agree; 1 where one does not, naming case and checkpoint; 2 where there is
// nothing to check. A bug is planted by name, to see that it is found.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { argv, exit } from "node:process";

const BUGS = ["no-capacity", "ties-high", "loss-without-E", "f-after-capacity", "padding-counted",
              "softmax-over-tokens", "one-queue-for-all-groups", "second-choices-with-the-first"];
const CHECKED = ["logits", "probs", "expert_index", "position_in_expert", "keep", "gate", "f", "P",
                 "aux_loss"];

const directory = argv[2];
const bug = argv[3] === "--bug" ? argv[4] : "";
if (!directory || (argv.length > 3 && !BUGS.includes(bug))) {
  console.error(`usage: node switch_router.mjs DIR [--bug ${BUGS.join("|")}]`);
  exit(2);
}

// -- The paper ------------------------------------------------------------------------------------

// Logits, [T, E] by rows: each token times the router, summed over the width in order.
function routerLogits(x, router, T, D, E) {
  const logits = new Array(T * E).fill(0);
  for (let t = 0; t < T; t++)
    for (let e = 0; e < E; e++)
      for (let d = 0; d < D; d++) logits[t * E + e] += x[t * D + d] * router[d * E + e];
  return logits;
}

// Eq. (1), over the experts of a token.
function softmax(logits, T, E) {
  const probs = new Array(T * E);
  const [rows, columns, at] = bug === "softmax-over-tokens"
    ? [E, T, (row, column) => column * E + row] : [T, E, (row, column) => row * E + column];
  for (let row = 0; row < rows; row++) {
    let largest = -Infinity, total = 0;
    for (let column = 0; column < columns; column++)
      largest = Math.max(largest, logits[at(row, column)]);
    for (let column = 0; column < columns; column++)
      total += probs[at(row, column)] = Math.exp(logits[at(row, column)] - largest);
    for (let column = 0; column < columns; column++) probs[at(row, column)] /= total;
  }
  return probs;
}

// The k most probable experts of each token; of equal ones the lower index is first. [T, K]
function chosen(probs, T, E, K) {
  const experts = [];
  for (let t = 0; t < T; t++) {
    const order = [...Array(E).keys()].sort((a, b) =>
      probs[t * E + b] - probs[t * E + a] || (bug === "ties-high" ? b - a : a - b));
    experts.push(...order.slice(0, K));
  }
  return experts;
}

// The place of each choice in its expert's queue: in each group the first choices of all tokens,
// in their order, then the second ones. Padding stands in none. [T, K]
function positions(experts, used, T, K, E, G) {
  const place = new Array(T * K).fill(0), perGroup = T / G;
  for (let g = 0; g < G; g++) {
    const taken = new Array(E).fill(0);
    const choices = [];
    for (let k = 0; k < K; k++)
      for (let t = g * perGroup; t < (g + 1) * perGroup; t++) choices.push([t, k]);
    if (bug === "second-choices-with-the-first") choices.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    for (const [t, k] of choices)
      if (used[t]) place[t * K + k] = taken[experts[t * K + k]]++;
  }
  return place;
}

// Eqs. (5) and (6), in each group: [G, E], of the tokens that are no padding.
function shares(probs, experts, keep, used, T, K, E, G) {
  const f = new Array(G * E).fill(0), P = new Array(G * E).fill(0), perGroup = T / G;
  for (let g = 0; g < G; g++) {
    let n = 0;
    for (let t = g * perGroup; t < (g + 1) * perGroup; t++) {
      if (!used[t] && bug !== "padding-counted") continue;
      n++;
      if (bug !== "f-after-capacity" || keep[t * K]) f[g * E + experts[t * K]]++;
      for (let e = 0; e < E; e++) P[g * E + e] += probs[t * E + e];
    }
    for (let e = 0; e < E; e++) {
      f[g * E + e] /= n || 1;
      P[g * E + e] /= n || 1;
    }
  }
  return { f, P };
}

// Eq. (4) without alpha, averaged over groups.
function balanceLoss(f, P, E, G) {
  const total = f.reduce((sum, share, i) => sum + share * P[i], 0);
  return (bug === "loss-without-E" ? 1 : E) * total / G;
}

function computed(file, correct) {
  const x = file["in.x"], router = file["param.w_router"], used = file["in.used"].data;
  const [T, D] = x.shape, E = router.shape[1];
  const K = file["set.k"], G = file["set.n_groups"], capacity = file["set.capacity"];
  const logits = routerLogits(numbers(x), numbers(router), T, D, E);
  const probs = softmax(logits, T, E);
  const experts = correct(chosen(probs, T, E, K));
  const groups = bug === "one-queue-for-all-groups" ? 1 : G;
  const place = positions(experts, used, T, K, E, groups);
  const keep = place.map((p, i) =>
    used[Math.floor(i / K)] && (p < capacity || bug === "no-capacity"));
  const gate = experts.map((e, i) => probs[Math.floor(i / K) * E + e]);
  const { f, P } = shares(probs, experts, keep, used, T, K, E, G);
  return {
    logits: [[T, E], logits], probs: [[T, E], probs], expert_index: [[T, K], experts],
    position_in_expert: [[T, K], place], keep: [[T, K], keep], gate: [[T, K], gate],
    f: [[G, E], f], P: [[G, E], P], aux_loss: [[], [balanceLoss(f, P, E, G)]],
  };
}

// -- Held to the vectors --------------------------------------------------------------------------

// NaN and the infinities are strings, which JSON has no numbers for.
function numbers(array) {
  return array.data.map(Number);
}

// The choices where a token's scores are closer than rounding, but not equal, are taken for right.
function corrector(file, eps) {
  const logits = numbers(file["out.logits"]), margin = numbers(file["out.margin"]);
  const noise = 8 * eps * logits.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  const right = file["out.expert_index"].data;
  return (experts) => experts.map((e, i) => (margin[i] > 0 && margin[i] < noise ? right[i] : e));
}

// What is wrong with an output, or nothing.
function fault(name, [shape, data], wanted, tolerance, eps) {
  if (shape.join() !== wanted.shape.join() || data.length !== wanted.data.length)
    return `has shape [${shape}]; the vectors have [${wanted.shape}]`;
  const want = wanted.dtype.startsWith("float") ? numbers(wanted) : wanted.data;
  const allowed = tolerance && !tolerance.exact ? tolerance.c * eps * tolerance.scale : 0;
  for (let i = 0; i < data.length; i++) {
    const same = data[i] === want[i] || Math.abs(data[i] - want[i]) <= allowed;
    if (!same) return `is ${data[i]} at place ${i}; the vectors have ${want[i]}`;
  }
}

const manifest = JSON.parse(readFileSync(join(directory, "manifest.json"), "utf8"));
const cases = manifest.cases.filter((one) => one.paper === "switch_2021" && one.kind === "layer");
let nFaults = 0, nCompared = 0;
for (const one of cases) {
  const bytes = readFileSync(join(directory, one.file));
  if (createHash("sha256").update(bytes).digest("hex") !== one.sha256) {
    console.log(`${one.id}: the file is not the one of the manifest`);
    nFaults++;
    continue;
  }
  const file = JSON.parse(bytes.toString("utf8"));
  const eps = manifest.eps.float64;
  const found = computed(file, corrector(file, eps));
  for (const name of CHECKED) {
    const said = fault(name, found[name], file[`out.${name}`], one.tolerances[name], eps);
    nCompared++;
    if (said) {
      console.log(`${one.id}: ${name} ${said}`);
      nFaults++;
      break;    // what comes later follows from it
    }
  }
}
if (cases.length === 0) {
  console.error("the manifest has no case of the Switch layer");
  exit(2);
}
console.log(`${cases.length} cases, ${nCompared} checkpoints, ${nFaults} cases differ`);
exit(nFaults ? 1 : 0);
