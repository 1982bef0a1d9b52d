"""The style of report.html: light and dark, from a phone's width to a desk's."""

STYLE = """
:root{--paper:#fbfaf7;--card:#fff;--ink:#1d2126;--quiet:#5c646e;--line:#dfdcd3;--ground:#ebe8df;
--bar:#3f6fb5;
--bar2:#1f4479;--span:#11151a;--good:#1c6b45;--goodbg:#dcf1e5;--warn:#7a4a00;--warnbg:#fcebc8;
--tick:#c2410c;--ring:#7e22ce;--boxl:42%}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--card:#1c2127;--ink:#e8e6e1;--quiet:#9aa3ad;
--line:#323941;
--ground:#2a3038;--bar:#5b8bd0;--bar2:#86aee6;--span:#fff;--good:#9be0bd;--goodbg:#173a2a;--warn:#f4cf85;
--warnbg:#43320f;--tick:#fb923c;--ring:#d8b4fe;--boxl:42%}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,
"Helvetica Neue",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:64rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:clamp(1.5rem,4.5vw,2.1rem);line-height:1.2;margin:0 0 .75rem;overflow-wrap:anywhere;
letter-spacing:-.01em}
h2{font-size:1.2rem;margin:2.5rem 0 .9rem}
h3{font-size:1rem;margin:1.8rem 0 .6rem}
h2 small{font-weight:400;font-size:.85rem;color:var(--quiet);margin-left:.4rem}
p{margin:.6rem 0}
.quiet{color:var(--quiet);font-size:.875rem}
.badge{display:inline-block;padding:.1rem .6rem;border-radius:1rem;font-size:.85rem;font-weight:600;
margin-right:.35rem}
.good{background:var(--goodbg);color:var(--good)}.warn{background:var(--warnbg);color:var(--warn)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.75rem;margin-top:1.25rem}
.tile{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.8rem 1rem;
display:flex;
flex-direction:column}
.tile b{font-size:1.75rem;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{color:var(--quiet);font-size:.875rem}.tile .what{text-transform:uppercase;letter-spacing:.05em;
font-size:.72rem}
.chart{display:grid;gap:.55rem}
.bar{display:grid;grid-template-columns:9rem 1fr 4.4rem;gap:.75rem;align-items:center}
.bar svg{display:block;width:100%;height:1.35rem;border-radius:.2rem;overflow:hidden}
.bar .number{text-align:right;font-variant-numeric:tabular-nums;font-weight:600}
.bar.overall{margin-top:.3rem;padding-top:.75rem;border-top:1px solid var(--line);font-weight:600}
.ground{fill:var(--ground)}.value{fill:var(--bar)}.overall .value{fill:var(--bar2)}
.bar path{fill:none;vector-effect:non-scaling-stroke}
.span{stroke:var(--span);stroke-width:1.6}
.tick{stroke:var(--tick);stroke-width:3}.ring{stroke:var(--ring);stroke-width:3;stroke-dasharray:3 2}
.key{display:inline-block;width:0;height:1em;vertical-align:-.15em;border-left:3px solid var(--tick)}
.key.ring{border-left:3px dashed var(--ring)}
.axis{font-size:.75rem;color:var(--quiet)}
.ticks{position:relative;height:1.1rem}
.ticks span{position:absolute;transform:translateX(-50%)}
.ticks span:nth-child(1){left:0;transform:none}.ticks span:nth-child(2){left:25%}.ticks span:nth-child(3){
left:50%}
.ticks span:nth-child(4){left:75%}.ticks span:nth-child(5){right:0;transform:none}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:.6rem;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.5rem .8rem;border-bottom:1px solid var(--line);vertical-align:top}
thead th{vertical-align:bottom;font-weight:600;color:var(--quiet);font-size:.8rem}
tr:last-child td,tr:last-child th{border-bottom:0}
td:nth-child(-n+4){white-space:nowrap}
td.other{white-space:nowrap}td small{display:block;color:var(--quiet);font-weight:400}
tr.overall td{font-weight:600}
.recipe th{width:12rem;font-weight:500;color:var(--quiet);white-space:nowrap}
.recipe td{white-space:normal}
code{font:.85em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(14rem,1fr));gap:1rem}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:.6rem;overflow:hidden;
display:flex;
flex-direction:column}
.frame{background:var(--ground);aspect-ratio:1;display:flex;align-items:center;justify-content:center}
.frame svg{display:block;width:100%;height:100%}
.lost{color:var(--quiet);font-size:.85rem;padding:1rem;text-align:center}
.box{fill:none;stroke:hsl(var(--hue) 85% var(--boxl));stroke-width:2;vector-effect:non-scaling-stroke}
.tag{fill:hsl(var(--hue) 85% 32%)}
svg text{fill:#fff;font-family:ui-sans-serif,system-ui,sans-serif;font-weight:600}
figcaption{padding:.7rem .85rem .8rem;display:flex;flex-direction:column;gap:.3rem;font-size:.9rem}
figcaption q{font-weight:600;overflow-wrap:anywhere}
figcaption ul{margin:0;padding-left:1.1rem;color:var(--quiet)}
figcaption code{color:var(--quiet);font-size:.75rem;margin-top:.15rem}
.kind{font-size:.72rem;text-transform:uppercase;letter-spacing:.05em;color:var(--quiet)}
@media(max-width:34rem){main{padding:1.25rem .9rem 3rem}
.bar{grid-template-columns:1fr auto;gap:.15rem .5rem}.bar svg,.ticks{grid-column:1/-1;grid-row:2}
.axis>span{display:none}.cards{grid-template-columns:repeat(2,minmax(0,1fr));gap:.6rem}
figcaption{padding:.5rem .6rem .6rem;font-size:.82rem}th,td{padding:.45rem .6rem}.recipe th{width:auto}}
@media print{.scroll{overflow:visible}figure{break-inside:avoid}}
"""
