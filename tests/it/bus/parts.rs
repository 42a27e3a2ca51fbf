//! Answers of engines' gates over the bus that do not come as they should.

use std::convert::Infallible;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use kvlens::bus::{Bus, subjects, wire};
use kvlens::config::frontend::LimitsConfig;
use kvlens::dispatch::parts::{Part, Reply, Word};
use kvlens::dispatch::plane::BusPlane;
use kvlens::dispatch::{DispatchError, EngineClient};
use kvlens::engine::requests::Requests;
use kvlens::http::Limits;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bus::gated::{Party, asked, causes, worker};
use crate::bus::server::Server;

/// A gate that tells what a row says.
async fn tell(bus: Bus, replies: Vec<Reply>) -> Infallible {
    let mut words = bus
        .listen(subjects::request(&worker()))
        .await
        .expect("it listens");
    loop {
        let heard = words.next().await.expect("the bus goes on");
        let word: Word = wire::decode("a word", &heard.payload).expect("a word");
        let (Word::Asks(_), Some(inbox)) = (word, heard.reply) else {
            continue;
        };
        for reply in &replies {
            bus.publish(inbox.clone(), reply).await.expect("it is sent");
        }
    }
}

/// What a gate tells, and what becomes of it.
type Row = (Vec<(u64, Part)>, Result<&'static str, &'static str>);

fn rows() -> Vec<Row> {
    let head = || Part::Head {
        status: 200,
        headers: Vec::new(),
    };
    let chunk = |text: &'static str| Part::Chunk(Bytes::from_static(text.as_bytes()));
    vec![
        (
            vec![(1, head()), (2, chunk("ab")), (3, Part::End)],
            Ok("ab"),
        ),
        (
            vec![
                (1, head()),
                (1, Part::Beat),
                (2, chunk("ab")),
                (3, Part::End),
            ],
            Ok("ab"),
        ),
        (
            vec![(1, head()), (3, chunk("b"))],
            Err("part 2 of an answer was lost: 3 came"),
        ),
        (
            vec![(1, head()), (2, chunk("a")), (2, chunk("a"))],
            Err("part 3 of an answer was lost: 2"),
        ),
        (
            vec![(1, head()), (3, Part::End)],
            Err("part 2 of an answer was lost: 3 came"),
        ),
        (
            vec![(1, head()), (2, chunk("a")), (3, Part::Beat)],
            Err("part 2 of an answer was lost: 3"),
        ),
        (
            vec![(1, head()), (2, head())],
            Err("part 2 is out of place"),
        ),
        (
            vec![(1, head()), (2, Part::Broken("why".to_owned()))],
            Err("broke off: why"),
        ),
        (
            vec![(2, head())],
            Err("part 1 of an answer was lost: 2 came"),
        ),
        (vec![(1, chunk("a"))], Err("part 1 is out of place")),
    ]
}

#[tokio::test]
async fn a_part_that_is_lost_or_foreign_breaks_the_answer() {
    for (replies, expected) in rows() {
        let server = Server::start().await;
        let replies = replies.into_iter();
        let replies = replies
            .map(|(number, part)| Reply {
                life: 7,
                number,
                part,
            })
            .collect();
        let mut tasks = JoinSet::new();
        let gate = server.bus("w").await;
        tasks.spawn(async move { match tell(gate, replies).await {} });
        let (plane, telling) = BusPlane::new(server.bus("frontend").await);
        tasks.spawn(telling.run());
        let client = EngineClient::new().over(plane);
        let wish = json!({});
        let mut asked_for = asked(&client, &wish).await;
        while matches!(asked_for, Err(DispatchError::Refused { .. })) {
            asked_for = asked(&client, &wish).await;
        }
        let whole = match asked_for {
            Ok(answer) => answer.whole().await,
            Err(error) => Err(error),
        };
        match (whole, expected) {
            (Ok(whole), expected) => assert_eq!(Ok(&whole[..]), expected.map(str::as_bytes)),
            (Err(error), Err(part)) => {
                assert!(
                    causes(&error).contains(part),
                    "{} and {part}",
                    causes(&error)
                );
            }
            (Err(error), Ok(_)) => panic!("{}", causes(&error)),
        }
    }
}

#[tokio::test]
async fn of_two_gates_of_one_name_the_first_is_heard() {
    let mut party = Party::start().await;
    let limits = Limits::from(&LimitsConfig::default());
    let to = (party.server.bus("other").await, worker());
    let other = Requests::new(party.gate.clone(), to, limits, &[]);
    party.gate_tasks.spawn(other.run(CancellationToken::new()));
    let wish = json!({"pieces": 200, "bytes": 9_000, "pause_millis": 1});
    let bytes = (0..200).map(|at| (at * 7_919) % 9_000 + 1).sum::<usize>();
    let mut twice = 0;
    for _ in 0..10 {
        let given = || party.engine.given.load(Ordering::SeqCst);
        let before = given();
        let answer = asked(&party.client, &wish).await.expect("an answer");
        let whole = answer.whole().await.expect("a whole one");
        assert_eq!(whole.len(), bytes);
        party.until_open(0).await;
        twice += usize::from(given() - before > 300);
    }
    assert!(twice > 0, "both gates run a request");
}
