//! Images through a folder in memory: one identity by whichever way they come and go.

use std::fs;
use std::path::PathBuf;

use crate::end_to_end::pictures::{chat, data_uri, image, png, text};
use crate::end_to_end::stack::{FAST, Stack};
use crate::media_fetch::server::{Answer, Server, respond};

#[tokio::test]
async fn an_image_by_file_is_the_image_by_url_and_inline() {
    let picture = png(96, 80, 9);
    let body = picture.clone();
    let server = Server::start("127.0.0.1:0", move |_| {
        Answer::Bytes(respond("200 OK\r\ncontent-type: image/png", &body))
    })
    .await;
    let config = format!(
        "[media]\ntransfer = \"shm\"\nallow = [\"127.0.0.1:{}\"]\n",
        server.port
    );
    let stack = Stack::configured(&format!("-- {FAST}"), &config).await;
    let first = chat(&[text("Whose house is it?"), image(&data_uri(&picture))]);
    let cold = stack.ask_settled(&first).await;
    assert_eq!((cold.overlap_blocks, cold.cached_tokens), (0, 0));
    for url in [server.url("/house.png"), data_uri(&picture)] {
        let body = chat(&[text("Whose house is it?"), image(&url)]);
        let told = stack.ask_settled(&body).await;
        assert_eq!(
            told.overlap_blocks,
            (told.prompt_tokens - 1) / 16,
            "{told:?}"
        );
        assert_eq!(told.cached_tokens, told.overlap_blocks * 16, "{told:?}");
        assert_eq!(told.worker, cold.worker);
    }
    let by_file = stack
        .metric("kvlens_media_transfers_total{way=\"shm\"}")
        .await;
    assert_eq!(by_file, 3.0, "{}", stack.log());
    // The engine is told the very image: named by its digest, it is all that lies there.
    let entry = stack.worker(&cold.worker).await;
    let dir = PathBuf::from(entry["media_dir"].as_str().unwrap());
    let own = fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let own = own.filter(|path| path.is_dir()).collect::<Vec<_>>();
    assert_eq!(own.len(), 1, "{own:?}");
    let files = fs::read_dir(&own[0]).unwrap().flatten();
    let images = files
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some());
    let images = images.collect::<Vec<_>>();
    assert_eq!(images.len(), 1, "{images:?}");
    assert_eq!(fs::read(&images[0]).unwrap(), picture);
    stack.end().await;
    assert!(!dir.exists(), "the folder ends with the run");
}
