"""How the page of a privacy report looks: light and dark, wide and narrow."""

STYLE = """
.kp-report{--ink:#1c2126;--soft:#5a646e;--paper:#fff;--panel:#f4f6f8;--rule:#d5dbe1;
--line-1:#0b62b8;--line-2:#a34700;--line-3:#1b7a3d;--line-4:#7a3da3;
--nothing:#e3f3e7;--nothing-ink:#14572b;--shares:#e0effa;--shares-ink:#0b4a80;--noisy:#ece5f7;--noisy-ink:#50268a;
--totals:#fdf0d5;--totals-ink:#704800;--clear:#fbdfdd;--clear-ink:#8a1a13;
box-sizing:border-box;max-width:70rem;margin:0 auto;padding:1rem;color:var(--ink);background:var(--paper);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
@media (prefers-color-scheme:dark){.kp-report{--ink:#e8ebee;--soft:#a7b1bb;--paper:#15191d;--panel:#20262c;
--rule:#3a434c;
--line-1:#6fb4f5;--line-2:#f0a162;--line-3:#76d196;--line-4:#c79bea;
--nothing:#173622;--nothing-ink:#a8e6bd;--shares:#12314b;--shares-ink:#a9d5fa;--noisy:#31224a;--noisy-ink:#d7c0f7;
--totals:#43310d;--totals-ink:#f7d894;--clear:#4a1b18;--clear-ink:#f9b8b2}
}
.kp-report *{box-sizing:border-box}
.kp-report h1{font-size:1.6rem;margin:.2em 0}
.kp-report h2{font-size:1.2rem;margin:1.6em 0 .4em}
.kp-report h3{font-size:1.05rem;margin:1.2em 0 .4em}
.kp-report .lead,.kp-report .delta,.kp-report .unit,.kp-report cite,.kp-report small,.kp-report .versions,
.kp-report dt{color:var(--soft)}
.kp-report small{display:block;font-size:.9rem;font-weight:400}
.kp-report sup{font-size:.875rem;line-height:0;margin-left:.15em}
.kp-report .versions{font-size:.9rem;margin-top:2rem}
.kp-report .simulated{border-left:.4rem solid var(--clear-ink);background:var(--clear);color:var(--clear-ink);
padding:.6rem 1rem;margin:1rem 0}
.kp-report .simulated ul{margin:.3rem 0 0;padding-left:1.2rem}
.kp-report .cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:.8rem}
.kp-report .card{background:var(--panel);border-radius:.5rem;padding:.8rem 1rem;
border-top:.25rem solid var(--noisy-ink)}
.kp-report .card.none{border-top-color:var(--clear-ink)}
.kp-report .card p{margin:0}
.kp-report .epsilon{font-size:1.8rem;font-weight:600;font-variant-numeric:tabular-nums}
.kp-report dl{display:grid;grid-template-columns:fit-content(9rem) minmax(0,1fr);
gap:.1rem .7rem;margin:.6rem 0 0;font-size:.9rem}
.kp-report dd{margin:0}
.kp-report .wide{overflow-x:auto;overflow-wrap:break-word}
.kp-report table{border-collapse:separate;border-spacing:2px;font-size:.9rem;width:100%}
.kp-report th,.kp-report td{padding:.35rem .6rem;text-align:left;vertical-align:top}
.kp-report thead th{color:var(--soft);font-weight:600;border-bottom:1px solid var(--rule)}
.kp-report .matrix tbody th{position:sticky;left:0;background:var(--paper);min-width:9rem;
max-width:16rem;font-weight:600}
.kp-report .level{border-radius:.25rem;white-space:nowrap}
.kp-report .legend{list-style:none;padding:0;font-size:.9rem}
.kp-report .legend li{display:flex;gap:.5rem;align-items:baseline;margin:.25rem 0}
.kp-report .legend .level{flex:0 0 5rem;padding:0 .5rem}
.kp-report .notes{font-size:.9rem;padding-left:1.5rem}
.kp-report .nothing{background:var(--nothing);color:var(--nothing-ink)}
.kp-report .shares{background:var(--shares);color:var(--shares-ink)}
.kp-report .noisy{background:var(--noisy);color:var(--noisy-ink)}
.kp-report .totals{background:var(--totals);color:var(--totals-ink)}
.kp-report .clear{background:var(--clear);color:var(--clear-ink);font-weight:600}
.kp-report .charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
.kp-report figure{margin:0}
.kp-report .title{margin:0 0 .3rem;font-weight:600}
.kp-report .chart{display:block;width:100%;max-width:34rem;height:auto;background:var(--panel);border-radius:.5rem}
.kp-report .chart text{fill:var(--soft);font:11px system-ui,sans-serif}
.kp-report .chart .grid{stroke:var(--rule);stroke-width:1}
.kp-report .chart polyline{fill:none;stroke-width:2}
.kp-report figcaption{margin-top:.3rem}
.kp-report figcaption span{margin-right:1rem;font-size:.9rem}
.kp-report figcaption i{display:inline-block;width:.8rem;height:.8rem;border-radius:50%;margin-right:.35rem}
.kp-report .part{border-top:2px solid var(--rule);margin-top:2rem;padding-top:.5rem}
@media (max-width:40rem){.kp-report{padding:.7rem;font-size:15px}
.kp-report .matrix tbody th{min-width:7.2rem;max-width:7.2rem;padding-left:0;box-shadow:2px 0 var(--rule)}
.kp-report .matrix td,.kp-report .matrix thead th{padding:.35rem .4rem}
.kp-report .chart text{font-size:15px}}
"""

PAGE_STYLE = """
body{margin:0;background:#fff}
@media (prefers-color-scheme:dark){body{background:#15191d}}
"""
"""Of a page that holds nothing else: the colours of --paper, to its edges."""
