//! One page with everything: tables and plots, in itself, light or dark as the reader's system is.

use super::{
    figures::Figures,
    plot::Plot,
    text::{self, number},
};

/// Functions that are shown one by one.
const FUNCTIONS_SHOWN: usize = 50;

const STYLE: &str = "\
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .15rem .8rem .15rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid rgba(128,128,128,.25); }
td { font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }";

/// The page of some runs.
pub(super) fn page(figures: &[Figures], plots: &[Plot]) -> String {
    let names: Vec<&str> = figures.iter().map(|f| f.name.as_str()).collect();
    let title = format!("Replay: {}", names.join(", "));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{0}</title>\n<style>\n{STYLE}\n</style>\n</head>\n\
         <body>\n<h1>{0}</h1>\n<ul>\n",
        escaped(&title)
    );
    for run in figures {
        page.push_str(&format!(
            "<li><b>{}</b>: {}; {}</li>\n",
            escaped(&run.name),
            escaped(&run.method),
            escaped(&run.machine)
        ));
        for remark in &run.remarks {
            page.push_str(&format!("<li>{}: {}</li>\n", escaped(&run.name), escaped(remark)));
        }
    }
    page.push_str("</ul>\n<div class=\"plots\">\n");
    for plot in plots {
        page.push_str(&format!(
            "<figure><figcaption><b>{}</b></figcaption>\n{}</figure>\n",
            escaped(plot.title),
            plot.svg
        ));
    }
    page.push_str("</div>\n");
    for section in text::sections(figures) {
        page.push_str(&format!(
            "<h2>{0}</h2>\n<div class=\"wide\"><table>\n<tr><th></th>",
            escaped(section.title)
        ));
        for name in &names {
            page.push_str(&format!("<th>{}</th>", escaped(name)));
        }
        page.push_str("</tr>\n");
        for (label, cells) in section.lines {
            page.push_str(&format!("<tr><td>{}</td>", escaped(&label)));
            for cell in cells {
                page.push_str(&format!("<td>{}</td>", escaped(&cell)));
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</table></div>\n");
    }
    for run in figures {
        page.push_str(&functions(run));
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn functions(run: &Figures) -> String {
    let mut text = format!(
        "<details><summary>{}: functions with most invocations</summary>\n<div class=\"wide\"><table>\n\
         <tr><th>function</th><th>invocations</th><th>answered</th><th>slowdown</th><th>p99 (ms)</th></tr>\n",
        escaped(&run.name)
    );
    for function in run.functions.iter().take(FUNCTIONS_SHOWN) {
        text.push_str(&format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            escaped(&function.name),
            function.invocations,
            function.answered,
            number(function.slowdown),
            number(function.response_ms_p99)
        ));
    }
    text.push_str("</table></div></details>\n");
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
