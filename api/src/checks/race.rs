//! Attempts that race: a slow or failed one does not hold up the next.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::timeout;

/// Starts `attempt` for each item, in order: the next one after `delay`, or at once when an earlier one fails. Returns the first
/// success, and drops all other attempts.
///
/// # Errors
/// Returns all errors, in the order in which the attempts failed, if no attempt succeeds.
pub(super) async fn first_success<I, T, E, F>(
    items: impl IntoIterator<Item = I>,
    delay: Duration,
    attempt: impl Fn(I) -> F,
) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut items = items.into_iter().peekable();
    let (mut running, mut errors) = (FuturesUnordered::new(), Vec::new());
    loop {
        running.extend(items.next().map(&attempt));
        let ended = if items.peek().is_some() {
            timeout(delay, running.next()).await
        } else {
            Ok(running.next().await)
        };
        match ended {
            Ok(Some(Ok(success))) => return Ok(success),
            Ok(Some(Err(error))) => errors.push(error),
            // Nothing runs, and no item is left.
            Ok(None) => return Err(errors),
            // Slow: the next attempt starts beside it.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    const DELAY: Duration = Duration::from_millis(250);

    /// Runs attempts that each take so many milliseconds, and then succeed or fail, and asserts how long all of it took.
    async fn race(attempts: &[(u64, bool)], took: u64) -> Result<usize, Vec<usize>> {
        let start = Instant::now();
        let result = first_success(0..attempts.len(), DELAY, async |index: usize| {
            let (milliseconds, succeeds) = attempts[index];
            sleep(Duration::from_millis(milliseconds)).await;
            if succeeds { Ok(index) } else { Err(index) }
        });
        let result = result.await;
        // Timers fire up to a millisecond later.
        let late = start.elapsed().as_millis() - u128::from(took);
        assert!(late < 5, "{attempts:?}: {late}");
        result
    }

    #[tokio::test(start_paused = true)]
    async fn first_success_wins() {
        assert_eq!(race(&[(10, true), (0, true)], 10).await, Ok(0));
        // A silent one does not hold up the next, and may still win.
        assert_eq!(race(&[(9_999, true), (10, true)], 260).await, Ok(1));
        assert_eq!(race(&[(300, true), (9_999, true)], 300).await, Ok(0));
        // A failure starts the next one at once.
        assert_eq!(race(&[(5, false), (10, true)], 15).await, Ok(1));
        let attempts = [(9_999, true), (5, false), (10, true)];
        assert_eq!(race(&attempts, 265).await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn reports_all_failures() {
        assert_eq!(race(&[], 0).await, Err(vec![]));
        assert_eq!(
            race(&[(300, false), (10, false)], 300).await,
            Err(vec![1, 0])
        );
    }
}
