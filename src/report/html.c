#include "report/html.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "report/checks.h"
#include "report/text.h"

enum { CHECKS_SHOWN = 40 };

static const char style[] =
    ":root{color-scheme:light dark;--ink:#1b1f24;--soft:#5c6670;--line:#d8dde3;--paper:#fff;--tint:#f4f6f8;--mark:#0072b2}\n"
    "@media screen and "
    "(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa5b0;--line:#343b43;--paper:#15181c;--tint:#1e2329;--mark:#56b4e9}"
    "svg [stroke='rgb(  0, 114, 178)']{stroke:#3d9ad1}svg [color='rgb(  0, 114, 178)']{color:#3d9ad1}}\n"
    "@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#bbb;--tint:#fff}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0 auto;padding:1.5rem 2rem 4rem;max-width:1400px;background:var(--paper);color:var(--ink);"
    "font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}\n"
    "h1{font-size:1.6rem;margin:.2em 0}h2{font-size:1.2rem;margin:2.2em 0 .5em;padding-bottom:.2em;border-bottom:1px solid var(--line)}\n"
    "h3{font-size:1rem;margin:1.2em 0 .3em}p{max-width:62em}\n"
    "a{color:var(--mark)}nav a{margin-right:1.1em;white-space:nowrap}.soft,figcaption,caption{color:var(--soft)}\n"
    "code,pre{font:13px/1.45 ui-monospace,'DejaVu Sans Mono',monospace}code{overflow-wrap:anywhere}\n"
    "pre{background:var(--tint);border:1px solid var(--line);border-radius:4px;padding:.8em 1em;overflow-x:auto}\n"
    ".wide{overflow-x:auto;margin:.6em 0}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.88em}\n"
    "caption{text-align:left;padding:.2em 0}th,td{padding:.22em .6em;text-align:right;border-bottom:1px solid "
    "var(--line);white-space:nowrap}\n"
    "th:first-child,td:first-child,.left{text-align:left}td.text{text-align:left;white-space:normal;min-width:16em}thead "
    "th{color:var(--soft);font-weight:600}\n"
    "td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:9em}tbody tr:hover{background:var(--tint)}.gap{border-left:2px "
    "solid var(--line)}\n"
    ".tables{display:flex;flex-wrap:wrap;gap:.4rem 3rem;align-items:flex-start}.tables .wide{max-width:100%}\n"
    ".figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));gap:1.4rem;margin:1rem 0}\n"
    "figure{margin:0;break-inside:avoid}figure "
    "svg{display:block;width:100%;height:auto;max-width:720px}figcaption{font-size:.86em;max-width:720px}\n"
    "figure b{display:block;color:var(--ink)}figcaption code{white-space:nowrap}\n"
    "svg [fill=black],svg [fill='rgb(  0,   0,   0)'],svg [fill='rgb(0,0,0)']{fill:var(--ink)}svg [color=black]{color:var(--ink)}"
    "svg [stroke='rgb(  0,   0,   0)']{stroke:var(--ink)}\n"
    "summary{cursor:pointer;padding:.25em 0}details{border-bottom:1px solid var(--line)}\n"
    "@media "
    "print{body{padding:0;font-size:11px}nav{display:none}details>*{display:block}h2{break-after:avoid}.figures{grid-template-columns:1fr "
    "1fr}}\n";

/* ---- pieces ---- */

static void escaped(FILE *out, const char *text) {
  for (; *text; text++) switch (*text) {
    case '&': fputs("&amp;", out); break;
    case '<': fputs("&lt;", out); break;
    case '>': fputs("&gt;", out); break;
    case '"': fputs("&quot;", out); break;
    default: fputc((unsigned char)*text < ' ' && *text != '\n' && *text != '\t' ? '?' : *text, out);
    }
}

static void cell(FILE *out, const char *text, bool gap) { fprintf(out, "<td%s>%s</td>", gap ? " class=\"gap\"" : "", text); }

static void section(FILE *out, const char *id, const char *title) { fprintf(out, "<section id=\"%s\">\n<h2>%s</h2>\n", id, title); }

static const char *text_of(const json_t *o, const char *key) {
  const char *text = json_string_value(json_object_get(o, key));
  return text ? text : "";
}

static void number_cell(FILE *out, const char *format, const json_t *value, double factor) {
  char text[32] = "-";
  if (json_is_number(value)) snprintf(text, sizeof text, format, factor * json_number_value(value));
  cell(out, text, false);
}

/* The pictures whose names begin with one of these. */
static void pictures(FILE *out, const figures *f, const char *const *prefixes) {
  fprintf(out, "<div class=\"figures\">\n");
  for (; *prefixes; prefixes++)
    for (int i = 0; i < f->count; i++) {
      const figure *p = &f->list[i];
      if (strncmp(p->name, *prefixes, strlen(*prefixes)) != 0) continue;
      fprintf(out, "<figure>\n%s<figcaption><b>", p->svg ? p->svg : "");
      escaped(out, p->title);
      fprintf(out, "</b>");
      escaped(out, p->caption);
      fprintf(out, " Data: <code>figures/%s.csv</code></figcaption>\n</figure>\n", p->name);
    }
  fprintf(out, "</div>\n");
}

static void list_of(FILE *out, const json_t *list) {
  size_t i;
  const json_t *each;
  json_array_foreach(list, i, each) {
    if (i) fputs(", ", out);
    if (json_is_string(each))
      escaped(out, json_string_value(each));
    else
      fprintf(out, "%lld", (long long)json_integer_value(each));
  }
}

static bool has_training(const json_t *story) { return json_array_size(json_object_get(json_object_get(story, "training"), "table")) > 0; }

/* ---- (a) the run ---- */

static void the_run(FILE *out, const char *run_folder, const run_report *r, const json_t *story) {
  char hours[32];
  double seconds = 0;
  size_t i;
  const json_t *stage;
  json_array_foreach(json_object_get(story, "stages"), i, stage) seconds += json_number_value(json_object_get(stage, "seconds"));
  clock_duration(seconds, hours);
  fprintf(out, "<header>\n<p class=\"soft\">cloqwork report</p>\n<h1>");
  escaped(out, *r->model ? r->model : run_folder);
  fprintf(out, "</h1>\n<p>Run directory <code>");
  escaped(out, run_folder);
  fprintf(out, "</code>: %lld layer%s, %d setting%s", (long long)r->layers, r->layers == 1 ? "" : "s", r->setting_count,
          r->setting_count == 1 ? "" : "s");
  if (r->tokens) fprintf(out, ", %lld calibration tokens", (long long)r->tokens);
  if (r->heldout_tokens) fprintf(out, ", %lld held out", (long long)r->heldout_tokens);
  fprintf(out, ".");
  if (json_array_size(json_object_get(story, "stages"))) {
    fprintf(out, " Computed by cloqwork ");
    list_of(out, json_object_get(story, "program"));
    fprintf(out, " on ");
    list_of(out, json_object_get(story, "hosts"));
    fprintf(out, ", teams of ");
    list_of(out, json_object_get(story, "ranks"));
    fprintf(out, " ranks, in %s of work between %s and %s.", hours, text_of(story, "begun"), text_of(story, "ended"));
  }
  if (r->original.count)
    fprintf(out, " Evaluated on %lld windows of %lld tokens: the original model has perplexity %.4g.",
            (long long)r->original.identity.windows, (long long)r->original.identity.length, r->original.points[0].perplexity);
  fprintf(out, "</p>\n<p class=\"soft\">Model fingerprint <code>");
  escaped(out, *r->model_fingerprint ? r->model_fingerprint : "unknown");
  fprintf(out, "</code>");
  static const char *const lines[] = {"blas", "libraries"};
  for (size_t k = 0; k < 2; k++) {
    if (*text_of(story, lines[k])) fprintf(out, "<br>");
    escaped(out, text_of(story, lines[k]));
  }
  fprintf(out,
          "</p>\n</header>\n<nav><a href=\"#results\">Results</a>%s<a href=\"#layers\">Layers</a><a href=\"#ranks\">Ranks and spectra</a>"
          "<a href=\"#time\">Time and memory</a><a href=\"#checks\">Certificates and warnings</a><a href=\"#load\">Loading</a></nav>\n",
          has_training(story) ? "<a href=\"#training\">After training</a>" : "");
}

/* ---- (b) results ---- */

typedef void (*cell_writer)(const setting_report *s, int p, char text[CELL]); /* p -1: the setting has no such rank */

static void bits_cell(const setting_report *s, int p, char text[CELL]) { bits_text(p < 0 ? NAN : s->matrix[MATRIX_ALL].bits[p], text); }
static void loss_cell(const setting_report *s, int p, char text[CELL]) {
  three_digits(p < 0 ? NAN : s->matrix[MATRIX_ALL].loss[ON_CALIBRATION][p], text);
}
static void heldout_cell(const setting_report *s, int p, char text[CELL]) {
  three_digits(p < 0 ? NAN : s->matrix[MATRIX_ALL].loss[ON_HELDOUT][p], text);
}
static const eval_point *evaluated(const setting_report *s, int p) { return p < 0 ? NULL : eval_result_find(&s->eval, s->points[p]); }
static void perplexity_cell(const setting_report *s, int p, char text[CELL]) { eval_cell(evaluated(s, p), EVAL_PERPLEXITY, text); }
static void kl_cell(const setting_report *s, int p, char text[CELL]) { eval_cell(evaluated(s, p), EVAL_KL, text); }
static void top1_cell(const setting_report *s, int p, char text[CELL]) { eval_cell(evaluated(s, p), EVAL_TOP1, text); }

static bool any_heldout(const run_report *r) {
  for (int i = 0; i < r->setting_count; i++)
    if (has_values(&r->settings[i], ON_HELDOUT)) return true;
  return false;
}

static bool any_eval(const run_report *r) {
  for (int i = 0; i < r->setting_count; i++)
    if (r->settings[i].eval.count) return true;
  return false;
}

/* One kind of number for every setting and rank; settings that lack all of it are left out. */
static void rank_table(FILE *out, const run_report *r, const char *title, cell_writer write, const int *points, int count) {
  char text[CELL];
  fprintf(out, "<div class=\"wide\"><table><caption>%s</caption>\n<thead><tr><th>setting</th>", title);
  for (int k = 0; k < count; k++) {
    rank_head(points[k], text);
    fprintf(out, "<th>%s</th>", text);
  }
  fprintf(out, "</tr></thead>\n<tbody>\n");
  for (int i = 0; i < r->setting_count; i++) {
    const setting_report *s = &r->settings[i];
    bool any = false;
    for (int k = 0; k < count; k++) {
      write(s, report_find_point(s, points[k]), text);
      any |= strcmp(text, "-") != 0;
    }
    if (!any) continue;
    fprintf(out, "<tr><td>");
    escaped(out, s->name);
    fprintf(out, "</td>");
    for (int k = 0; k < count; k++) {
      write(s, report_find_point(s, points[k]), text);
      cell(out, text, false);
    }
    fprintf(out, "</tr>\n");
  }
  fprintf(out, "</tbody></table></div>\n");
}

/* A setting by types of matrices. */
static void setting_details(FILE *out, const setting_report *s) {
  char text[CELL], time[32];
  bool heldout = has_values(s, ON_HELDOUT);
  clock_duration(s->matrix[MATRIX_ALL].seconds, time);
  fprintf(out, "<details><summary>");
  escaped(out, s->name);
  fprintf(out, " <span class=\"soft\">%lld layer%s, %s of one rank", (long long)s->layers, s->layers == 1 ? "" : "s", time);
  if (s->matrix[MATRIX_ALL].adapter_size > 0) fprintf(out, ", adapter %.3g of W", s->matrix[MATRIX_ALL].adapter_size);
  fprintf(out, "%s%s</span></summary>\n<div class=\"wide\"><table>\n<thead><tr><th>matrix</th>",
          s->refined ? "; codes made for their adapter: useless without it" : "", s->own_inputs ? "; on inputs of its own prefix" : "");
  for (int kind = 0; kind < 2 + heldout; kind++)
    for (int p = 0; p < s->point_count; p++) {
      rank_head(s->points[p], text);
      fprintf(out, "<th%s>%s%s</th>", p ? "" : " class=\"gap\"", p ? "" : kind == 0 ? "bits: " : kind == 1 ? "loss: " : "held out: ", text);
    }
  fprintf(out, "</tr></thead>\n<tbody>\n");
  for (int k = 0; k < MATRIX_TYPES; k++) {
    const matrix_report *m = &s->matrix[k];
    if (!m->count) continue;
    fprintf(out, "<tr><td>%s</td>", matrix_name(k));
    for (int kind = 0; kind < 2 + heldout; kind++)
      for (int p = 0; p < s->point_count; p++) {
        if (kind == 0)
          bits_text(m->bits[p], text);
        else
          three_digits(m->loss[kind - 1][p], text);
        cell(out, text, p == 0);
      }
    fprintf(out, "</tr>\n");
  }
  fprintf(out, "</tbody></table></div></details>\n");
}

static status results(FILE *out, const run_report *r, const figures *f) {
  status st = OK;
  int *points = NULL, count;
  static const char *const prefixes[] = {"frontier", NULL};
  TRY(all_points(r, &points, &count));
  section(out, "results", "Results");
  pictures(out, f, prefixes);
  fprintf(out,
          "<p>Relative loss: tr((W-Q-BA) H (W-Q-BA)') / tr(W H W'), computed from the stored numbers; geometric mean over all matrices. "
          "<i>base</i> is the model without its adapter, r=8 with the adapter's first 8 columns. Bits per weight count codes, scales and "
          "zeros, and the adapter in fp16.%s</p>\n",
          report_own_inputs(r)
              ? " Losses of settings with <code>act_quantizer</code> are on inputs and targets of their own: compare them with "
                "others by perplexity and KL."
              : "");
  fprintf(out, "<div class=\"tables\">\n");
  if (any_heldout(r)) rank_table(out, r, "Relative loss, held-out tokens", heldout_cell, points, count);
  rank_table(out, r, "Relative loss, calibration tokens", loss_cell, points, count);
  if (any_eval(r)) {
    rank_table(out, r, "Perplexity", perplexity_cell, points, count);
    rank_table(out, r, "KL(original || this) of the next token's distribution, nats", kl_cell, points, count);
    rank_table(out, r, "Next token the same as the original's, %", top1_cell, points, count);
  }
  rank_table(out, r, "Bits per weight", bits_cell, points, count);
  fprintf(out, "</div>\n<h3>By kinds of matrices</h3>\n");
  for (int i = 0; i < r->setting_count; i++) setting_details(out, &r->settings[i]);
  fprintf(out, "</section>\n");
done:
  FREE(points);
  return st;
}

/* ---- what training came to ---- */

static void training(FILE *out, const json_t *story, const figures *f) {
  static const char *const prefixes[] = {"training", NULL};
  const json_t *found = json_object_get(story, "training"), *how = json_object_get(found, "made_from"), *row;
  size_t i;
  if (!has_training(story)) return;
  section(out, "training", "After training");
  fprintf(
      out,
      "<p>LoRA from each start on the same tokens in the same order, %lld steps of %lld x %lld tokens, at the best rate of a grid; "
      "<i>original</i> is the "
      "unquantized model with a fresh adapter. Perplexity on %lld held-out windows; after &plusmn; its standard deviation over seeds.</p>\n"
      "<div class=\"wide\"><table>\n<thead><tr><th>start</th><th>perplexity before</th><th>first step's loss</th><th>last steps' loss</th>"
      "<th>rate</th><th>perplexity after</th><th>&plusmn;</th><th>seeds</th></tr></thead>\n<tbody>\n",
      (long long)json_integer_value(json_object_get(how, "steps")), (long long)json_integer_value(json_object_get(how, "batch")),
      (long long)json_integer_value(json_object_get(how, "length")), (long long)json_integer_value(json_object_get(how, "windows")));
  json_array_foreach(json_object_get(found, "table"), i, row) {
    static const char *const keys[] = {"perplexity_before", "first_loss", "last_loss", "rate", "perplexity_after", "deviation", "seeds"};
    fprintf(out, "<tr><td>");
    escaped(out, text_of(row, "setting"));
    fprintf(out, "</td>");
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) number_cell(out, "%.4g", json_object_get(row, keys[k]), 1);
    fprintf(out, "</tr>\n");
  }
  fprintf(out, "</tbody></table></div>\n");
  pictures(out, f, prefixes);
  fprintf(out, "</section>\n");
}

/* ---- (f) time and memory ---- */

static void duration_cell(FILE *out, const json_t *value) {
  char text[32] = "-";
  if (json_is_number(value)) clock_duration(json_number_value(value), text);
  cell(out, text, false);
}

static void time_and_memory(FILE *out, const json_t *story, const figures *f) {
  static const char *const prefixes[] = {"time", NULL};
  size_t i;
  const json_t *stage, *peak = json_object_get(story, "peak_gflops");
  section(out, "time", "Time and memory");
  if (json_array_size(json_object_get(story, "stages")) == 0) {
    fprintf(out, "<p>This run directory has no metrics.jsonl: what it took is not known.</p>\n</section>\n");
    return;
  }
  fprintf(
      out,
      "<div class=\"wide\"><table>\n<thead><tr><th>stage</th><th>units</th><th>time</th><th>planned</th><th>GFLOP/s</th><th>of peak</th>"
      "<th>own GiB</th><th>shared GiB</th><th>planned GiB</th></tr></thead>\n<tbody>\n");
  json_array_foreach(json_object_get(story, "stages"), i, stage) {
    fprintf(out, "<tr><td>%s</td><td>%lld</td>", text_of(stage, "stage"), (long long)json_integer_value(json_object_get(stage, "units")));
    duration_cell(out, json_object_get(stage, "seconds"));
    duration_cell(out, json_object_get(stage, "planned_seconds"));
    number_cell(out, "%.3g", json_object_get(stage, "gflops"), 1);
    number_cell(out, "%.2f", json_object_get(stage, "of_peak"), 1);
    number_cell(out, "%.3f", json_object_get(stage, "private_bytes"), 1.0 / (1 << 30));
    number_cell(out, "%.3f", json_object_get(stage, "shared_bytes"), 1.0 / (1 << 30));
    number_cell(out, "%.3f", json_object_get(stage, "planned_bytes"), 1.0 / (1 << 30));
    fprintf(out, "</tr>\n");
  }
  fprintf(out, "</tbody></table></div>\n<p class=\"soft\">Time: of finished units, summed. Memory: the most that one rank had for itself, "
               "and that its team "
               "shared; planned: a rank's own with its part of what is shared. ");
  if (json_is_number(peak))
    fprintf(out,
            "Peak: %.0f GFLOP/s, what all ranks reached together in a short single-precision product when the run set out; planned time: "
            "as plan "
            "said then, for as many units.",
            json_number_value(peak));
  else
    fprintf(out, "This run keeps no plan.json (cloqwork run writes it), so there is nothing to hold most of it against.");
  fprintf(out, "</p>\n");
  pictures(out, f, prefixes);
  fprintf(out, "</section>\n");
}

/* ---- (g) certificates and warnings ---- */

static void certificates(FILE *out, const run_report *r) {
  char name[64];
  fprintf(out, "<div class=\"wide\"><table><caption>The loss computed from the stored codes and factors equals the tail of the spectrum "
               "where the adapter is optimal in the "
               "Gram; <code>cloqwork verify</code> computes all of it again, in every method's own metric.</caption>\n"
               "<thead><tr><th>setting</th><th>metric</th><th>matrices</th><th>with such a tail</th><th>farthest off</th><th "
               "class=\"left\">which</th></tr></thead>\n<tbody>\n");
  for (int i = 0; i < r->setting_count; i++) {
    const setting_report *s = &r->settings[i];
    int certified, worst = report_worst_certificate(s, &certified);
    fprintf(out, "<tr><td>");
    escaped(out, s->name);
    fprintf(out, "</td><td>");
    escaped(out, *s->metric ? s->metric : certified ? "gram" : "-");
    fprintf(out, "</td><td>%d</td><td>%d</td>", s->entry_count, certified);
    if (worst < 0) {
      fprintf(out, "<td>-</td><td class=\"left\">-</td></tr>\n");
      continue;
    }
    entry_name(&s->entries[worst], name);
    fprintf(out, "<td>%.1e</td><td class=\"left\">%s</td></tr>\n", entry_certificate(&s->entries[worst]), name);
  }
  fprintf(out, "</tbody></table></div>\n");
}

static void warnings(FILE *out, const json_t *checks, const json_t *story) {
  size_t i, all = json_array_size(checks);
  const json_t *each;
  long long unread = json_integer_value(json_object_get(story, "unread_lines"));
  if (unread) fprintf(out, "<p>metrics.jsonl: %lld lines could not be read; they are missing in times above.</p>\n", unread);
  if (all == 0) {
    fprintf(out, "<p>No warnings.</p>\n");
    return;
  }
  fprintf(out,
          "<div class=\"wide\"><table><caption>%zu warning%s%s</caption>\n<thead><tr><th>matrix</th><th class=\"left\">setting</th><th "
          "class=\"left\">what</th></tr></thead>\n<tbody>\n",
          all, all == 1 ? "" : "s", all > CHECKS_SHOWN ? ", the gravest kinds first; all of them: cloqwork report --json" : "");
  json_array_foreach(checks, i, each) {
    if (i == CHECKS_SHOWN) break;
    fprintf(out, "<tr><td>%s</td><td class=\"left\">", *text_of(each, "matrix") ? text_of(each, "matrix") : "all");
    escaped(out, *text_of(each, "setting") ? text_of(each, "setting") : "all");
    fprintf(out, "</td><td class=\"text\">");
    escaped(out, text_of(each, "text"));
    fprintf(out, "</td></tr>\n");
  }
  fprintf(out, "</tbody></table></div>\n");
}

/* ---- (h) loading ---- */

static void loading(FILE *out, const char *run_folder, const run_report *r, const json_t *story) {
  size_t i;
  const json_t *each;
  int chosen;
  section(out, "load", "Loading the result");
  json_array_foreach(json_object_get(story, "exports"), i, each) {
    fprintf(out, "<h3>export/");
    escaped(out, text_of(each, "folder"));
    fprintf(out, "</h3>\n");
    if (*text_of(each, "snippet")) {
      fprintf(out, "<pre><code>");
      escaped(out, text_of(each, "snippet"));
      fprintf(out, "</code></pre>\n");
    } else {
      fprintf(out, "<p>A folder without an adapter's model card: its README.md says how to load it.</p>\n");
    }
  }
  if (i == 0 && report_pick(r, 1, &chosen)) {
    const setting_report *s = &r->settings[chosen];
    fprintf(out,
            "<p>Nothing is exported yet. This makes two folders, <code>base</code> and <code>adapter</code>, that the usual libraries load "
            "(<code>--to</code> also takes bnb, compressed-tensors and dense), and a model card in each with the lines to load and train "
            "it:</p>\n<pre><code>mpirun -n 2 cloqwork export ");
    escaped(out, run_folder);
    fprintf(out, " --setting ");
    escaped(out, s->name);
    fprintf(out,
            " --rank %d --to gptq</code></pre>\n<pre><code>from transformers import AutoModelForCausalLM\nfrom peft import "
            "PeftModel\n\nfolder = &quot;",
            s->points[s->point_count - 1]);
    escaped(out, run_folder);
    fprintf(out, "/export/");
    escaped(out, s->name);
    fprintf(out,
            "-r%d-gptq&quot;\nmodel = AutoModelForCausalLM.from_pretrained(folder + &quot;/base&quot;)\n"
            "model = PeftModel.from_pretrained(model, folder + &quot;/adapter&quot;, is_trainable=True)</code></pre>\n",
            s->points[s->point_count - 1]);
  }
  fprintf(out, "</section>\n");
}

/* ---- the page ---- */

status html_write(FILE *out, const char *run_folder, const run_report *r, const json_t *story, const json_t *checks, const figures *f) {
  static const char *const heats[] = {"heat", NULL}, *const ranks[] = {"rank", "spectrum", NULL};
  status st = OK;
  fprintf(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
               "content=\"width=device-width, initial-scale=1\">\n<title>");
  escaped(out, *r->model ? r->model : run_folder);
  fprintf(out, ": cloqwork report</title>\n<style>\n%s</style>\n</head>\n<body>\n", style);
  the_run(out, run_folder, r, story);
  if (!f->drawn)
    fprintf(out, "<p><strong>No pictures: gnuplot is not installed (Debian: gnuplot-nox). Their data and scripts are in "
                 "<code>figures/</code>.</strong></p>\n");
  TRY(results(out, r, f));
  training(out, story, f);
  section(out, "layers", "Layers");
  pictures(out, f, heats);
  fprintf(out, "</section>\n");
  section(out, "ranks", "Ranks and spectra");
  if (*f->note) fprintf(out, "<p class=\"soft\">%s</p>\n", f->note);
  pictures(out, f, ranks);
  fprintf(out, "</section>\n");
  time_and_memory(out, story, f);
  section(out, "checks", "Certificates and warnings");
  certificates(out, r);
  warnings(out, checks, story);
  fprintf(out, "</section>\n");
  loading(out, run_folder, r, story);
  fprintf(out, "</body>\n</html>\n");
done:
  return st;
}
