"""How report.html looks: light or dark as the reader's system is, readable on a phone and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfbf9; --card: #ffffff; --text: #1d2126; --quiet: #5a6370; --line: #dfe2e6; --accent: #0b6e99;
  --warn: #8a3b00; --warn-page: #fff4e5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1b1f25; --text: #e7e9ec; --quiet: #a3acb8; --line: #333a44; --accent: #5cb8e0;
    --warn: #ffc58a; --warn-page: #33261a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; padding: 2.5rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
}
main { max-width: 70rem; margin: 0 auto; }
h1 { margin: 0 0 1rem; font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .5rem; font-size: 1.2rem; }
p { max-width: 44rem; margin: .6rem 0; }
.lead { font-size: 1.13rem; }
.quiet, caption, figcaption { color: var(--quiet); font-size: .9rem; }
.kicker { margin: 0 0 .3rem; color: var(--quiet); font-size: .9rem; }
.facts { display: grid; grid-template-columns: repeat(3, 1fr); gap: .75rem; margin: 1.75rem 0; }
.facts div { padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.facts dt { color: var(--quiet); font-size: .85rem; }
.facts dd { margin: .1rem 0 0; font-size: 1.05rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.notes { max-width: 44rem; margin: 1rem 0; padding: .7rem 1rem .7rem 2rem; background: var(--warn-page); }
.notes, .failed { color: var(--warn); border-radius: .5rem; overflow-wrap: anywhere; }
.failed { padding: .7rem 1rem; background: var(--warn-page); font-size: 1.05rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
figure { margin: 1rem 0; }
svg { display: block; }
.chart svg { max-width: 100%; height: auto; }
@media (min-width: 60rem) { svg { max-width: 100%; height: auto; } }
table { border-collapse: collapse; margin: .75rem 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .4rem; text-align: left; }
th, td { padding: .32rem .85rem .32rem 0; text-align: right; vertical-align: baseline; white-space: nowrap; }
thead th { color: var(--quiet); font-weight: 600; border-bottom: 1px solid var(--quiet); }
tbody th { font-weight: 400; }
tbody tr { border-bottom: 1px solid var(--line); }
.t { text-align: left; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre, code { font: .85rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { margin: .75rem 0; padding: 1rem; overflow-x: auto; background: var(--card); border: 1px solid var(--line); }
code { overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  .facts { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .facts div { padding: .6rem .75rem; }
}
@media print { body { padding: 0; } .scroll, pre { overflow: visible; } }
"""
