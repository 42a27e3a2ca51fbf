//! Images that engines fetch: the same overlap as by any other way, and answers where they cannot.

use crate::end_to_end::pictures::{chat, data_uri, image, png, text};
use crate::end_to_end::stack::{FAST, Stack};

const CONFIG: &str = "[media]\ntransfer = \"http\"\nhttp_listen = \"127.0.0.1:0\"\n";

async fn by_way(stack: &Stack, way: &str) -> f64 {
    let name = format!("kvlens_media_transfers_total{{way=\"{way}\"}}");
    stack.metric(&name).await
}

#[tokio::test]
async fn an_image_that_is_fetched_twice_overlaps_whole() {
    let words = format!("-- {FAST} --allowed-media-domains 127.0.0.1");
    let stack = Stack::configured(&words, CONFIG).await;
    let picture = chat(&[
        text("Whose house is it?"),
        image(&data_uri(&png(96, 80, 9))),
    ]);
    let cold = stack.ask_settled(&picture).await;
    assert_eq!((cold.overlap_blocks, cold.cached_tokens), (0, 0));
    let warm = stack.ask_settled(&picture).await;
    assert_eq!(
        warm.overlap_blocks,
        (warm.prompt_tokens - 1) / 16,
        "{warm:?}"
    );
    assert_eq!(warm.cached_tokens, warm.overlap_blocks * 16, "{warm:?}");
    assert_eq!(warm.worker, cold.worker);
    assert_eq!(by_way(&stack, "http").await, 2.0, "{}", stack.log());
    assert_eq!(by_way(&stack, "http_unread").await, 0.0);
    stack.end().await;
}

#[tokio::test]
async fn engines_that_cannot_reach_us_are_sent_their_images() {
    let unreachable = format!("{CONFIG}http_url = \"http://127.0.0.1:1\"\n");
    for (words, config) in [
        ("", CONFIG),
        ("--allowed-media-domains 127.0.0.1", &unreachable),
    ] {
        let words = format!("--workers 1 -- {FAST} {words}");
        let stack = Stack::configured(&words, config).await;
        let cold = stack.ask_settled(&stack.example).await;
        let warm = stack.ask_settled(&stack.example).await;
        assert_eq!(
            (cold.overlap_blocks, warm.overlap_blocks),
            (0, 6),
            "{warm:?}"
        );
        assert_eq!(warm.prompt_blocks, 6);
        assert_eq!(by_way(&stack, "http_unread").await, 1.0, "{}", stack.log());
        assert_eq!(
            by_way(&stack, "inline").await,
            1.0,
            "the second is not tried"
        );
        stack.end().await;
    }
}
