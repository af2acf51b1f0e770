//! How far a download or an upload is, for a person: one line on a terminal, drawn over itself, and nothing anywhere else.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use super::output::size;

/// Between two drawings: more often nobody sees.
const PERIOD: Duration = Duration::from_millis(100);
/// Characters of the bar.
const WIDTH: u64 = 30;

/// The line.
#[derive(Debug)]
pub(super) struct Progress {
    /// When it was last drawn; nothing where nobody looks.
    drawn: Option<Option<Instant>>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { drawn: std::io::stderr().is_terminal().then_some(None) }
    }

    /// Draws it, but not as often as this is called.
    pub(super) fn show(&mut self, done: u64, all: u64) {
        let Some(drawn) = &mut self.drawn else { return };
        if done < all && drawn.is_some_and(|drawn| drawn.elapsed() < PERIOD) {
            return;
        }
        *drawn = Some(Instant::now());
        print(&format!("\r{}", line(done, all)));
    }

    /// Takes it away.
    pub(super) fn end(self) {
        if self.drawn.flatten().is_some() {
            print("\r\x1b[K");
        }
    }
}

fn line(done: u64, all: u64) -> String {
    let filled = done.saturating_mul(WIDTH).checked_div(all).unwrap_or(WIDTH).min(WIDTH);
    let bar: String = (0..WIDTH).map(|at| if at < filled { '#' } else { '.' }).collect();
    format!("{bar} {} of {}\x1b[K", size(done), size(all))
}

fn print(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // Where stderr is closed there is nobody to tell.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_bar_is_full_when_all_is_there() {
        assert!(line(0, 100).starts_with(&".".repeat(30)));
        assert!(line(50, 100).starts_with(&format!("{}{}", "#".repeat(15), ".".repeat(15))));
        for (done, all) in [(100, 100), (0, 0), (200, 100)] {
            assert!(line(done, all).starts_with(&"#".repeat(30)), "{done} of {all}");
        }
        assert!(line(u64::MAX, u64::MAX).contains("15.9 EiB of 15.9 EiB"));
    }
}
