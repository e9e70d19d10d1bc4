use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::{
    driver::read_frame,
    frame::{HEADER_BYTES, Header},
    *,
};
use crate::{
    link::table::OUTPUT_WINDOW_BYTES,
    message::{BODY_BYTES_MAX, NodeRequest, Reply},
};

/// Two ends of a link, each with the other's requests.
fn linked() -> [(Link, mpsc::Receiver<Incoming>); 2] {
    let (one, two) = tokio::io::duplex(64 << 10);
    [driven(one), driven(two)]
}

fn driven(stream: DuplexStream) -> (Link, mpsc::Receiver<Incoming>) {
    let (link, driver, incoming) = new(stream);
    tokio::spawn(driver.run());
    (link, incoming)
}

/// Answers every request with its body, after as much output as the request names.
fn echo(mut incoming: mpsc::Receiver<Incoming>) {
    tokio::spawn(async move {
        while let Some(Incoming {
            request,
            body,
            replier,
        }) = incoming.recv().await
        {
            tokio::spawn(async move {
                if let Request::Node(NodeRequest::Remove(output)) = request {
                    let output = vec![b'o'; output.parse().unwrap()];
                    replier.output(output.into()).await;
                }
                replier.reply(&Reply::Content, body).await;
            });
        }
    });
}

const STATS: Request = Request::Node(NodeRequest::Stats);

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn both_sides_ask_and_answer_at_once() {
    let [(one, of_two), (two, of_one)] = linked();
    echo(of_one);
    echo(of_two);
    let calls = (0..40usize).map(|n| {
        let link = if n % 2 == 0 { one.clone() } else { two.clone() };
        tokio::spawn(async move {
            let body = Bytes::from(vec![n as u8; n * n * 1000]);
            let answer = link.call(&STATS, body.clone(), LONG).await.unwrap();
            assert_eq!(answer, (Reply::Content, body));
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    assert_eq!((one.waiting(), two.waiting()), (0, 0));
    let longest = Bytes::from(vec![1; BODY_BYTES_MAX]);
    assert_eq!(one.call(&STATS, longest.clone(), LONG).await.unwrap().1, longest);
    let longer = Bytes::from(vec![1; BODY_BYTES_MAX + 1]);
    let refused = one.call(&STATS, longer, LONG).await.unwrap_err();
    assert!(matches!(refused, CallError::Message(_)), "{refused}");
}

#[tokio::test]
async fn output_arrives_in_order_before_the_reply_and_waits_to_be_taken() {
    let [(one, _), (_two, of_one)] = linked();
    echo(of_one);
    let bytes = 5 * OUTPUT_WINDOW_BYTES;
    let request = Request::Node(NodeRequest::Remove(bytes.to_string()));
    let mut pending = one.begin(&request, Bytes::from_static(b"b")).await.unwrap();
    let mut arrived = 0;
    let mut untaken = Vec::new();
    // What is not taken stops the other side; what arrived by then is a window.
    while arrived < OUTPUT_WINDOW_BYTES {
        match pending.next().await.unwrap() {
            Next::Output(piece) => {
                arrived += piece.len();
                untaken.push(piece);
            }
            Next::Reply(_) => panic!("replied after {arrived} bytes"),
        }
    }
    assert_eq!(arrived, OUTPUT_WINDOW_BYTES);
    assert_eq!(
        one.call(&STATS, Bytes::new(), LONG).await.unwrap().0,
        Reply::Content
    );
    assert!(pending.try_output().is_none());
    for piece in untaken {
        pending.took(&piece).await;
    }
    loop {
        match pending.next().await.unwrap() {
            Next::Output(piece) => {
                arrived += piece.len();
                pending.took(&piece).await;
            }
            Next::Reply(answer) => {
                assert_eq!(answer.1, b"b".as_slice());
                break;
            }
        }
    }
    assert_eq!(arrived, bytes);
}

#[tokio::test]
async fn output_that_nobody_waits_for_stops_no_one() {
    let [(one, _), (_two, mut of_one)] = linked();
    let pending = one.begin(&STATS, Bytes::new()).await.unwrap();
    let Incoming { replier, .. } = of_one.recv().await.unwrap();
    drop(pending);
    replier.output(vec![0; 10 * OUTPUT_WINDOW_BYTES].into()).await;
    replier.reply(&Reply::Done, Bytes::new()).await;
    let again = one.begin(&STATS, Bytes::new()).await.unwrap();
    // A request that is not answered is answered for.
    drop(of_one.recv().await.unwrap());
    let mut again = again;
    assert!(matches!(
        again.next().await,
        Ok(Next::Reply((Reply::Failed(_), _)))
    ));
}

#[tokio::test]
async fn the_end_of_a_link_fails_what_is_open_and_what_comes_after() {
    let [(one, _of_two), (two, mut of_one)] = linked();
    let mut pending = one.begin(&STATS, Bytes::new()).await.unwrap();
    let incoming = of_one.recv().await.unwrap();
    two.close();
    assert!(matches!(pending.next().await, Err(CallError::Closed(_))));
    one.wait_closed().await;
    let late = one.call(&STATS, Bytes::new(), LONG).await;
    assert!(matches!(late, Err(CallError::Closed(_))));
    incoming.replier.output(Bytes::from_static(b"x")).await;
    incoming.replier.reply(&Reply::Done, Bytes::new()).await;
}

#[tokio::test]
async fn a_call_has_a_deadline() {
    let [(one, _of_two), (_two, mut of_one)] = linked();
    let limit = Duration::from_millis(1);
    let late = one.call(&STATS, Bytes::new(), limit).await.unwrap_err();
    assert!(matches!(late, CallError::Late(_)), "{late}");
    assert!(of_one.recv().await.is_some());
    assert_eq!(one.waiting(), 0);
    assert!(one.closed().is_none(), "the link goes on");
}

#[tokio::test]
async fn a_silent_peer_is_given_up() {
    // It takes all that is sent and says nothing.
    let (one, two) = tokio::io::duplex(64 << 10);
    let (link, driver, _incoming) = new(one);
    let silent = tokio::spawn(async move {
        let (mut reader, _writer) = tokio::io::split(two);
        tokio::io::copy(&mut reader, &mut tokio::io::sink()).await
    });
    tokio::spawn(driver.run());
    let failed = link.call(&STATS, Bytes::new(), LONG).await.unwrap_err();
    assert!(matches!(failed, CallError::Closed(Closed::Silent)), "{failed:?}");
    silent.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_breaks_the_rules_ends_the_link() {
    let check = |bytes: Vec<u8>| async move {
        let (one, mut two) = tokio::io::duplex(64 << 10);
        let (_link, driver, _incoming) = new(one);
        let run = tokio::spawn(driver.run());
        two.write_all(&bytes).await.unwrap();
        run.await.unwrap()
    };
    let frame = |kind, call, payload: &[u8]| {
        let frame = Frame::new(kind, call, payload.to_vec());
        [frame.header().as_slice(), payload].concat()
    };
    let announced = encode_head(&STATS, 3).unwrap();
    assert!(matches!(check(vec![9; 100]).await, Closed::Frame(_)));
    for bytes in [
        frame(Kind::Request, 1, &[255; 20]),
        frame(Kind::Taken, 1, b"abc"),
        [
            frame(Kind::Request, 1, &announced),
            frame(Kind::RequestBody, 1, b"four"),
        ]
        .concat(),
        [
            frame(Kind::Request, 1, &announced),
            frame(Kind::RequestBody, 1, b""),
        ]
        .concat(),
        [
            frame(Kind::Request, 1, &announced),
            frame(Kind::Request, 1, &announced),
        ]
        .concat(),
    ] {
        let closed = check(bytes.clone()).await;
        assert!(matches!(closed, Closed::Broken(_)), "{bytes:?}: {closed:?}");
    }
}

#[tokio::test]
async fn a_request_of_a_later_version_is_answered() {
    let (one, mut two) = tokio::io::duplex(64 << 10);
    let (_link, driver, _incoming) = new(one);
    tokio::spawn(driver.run());
    let head = [3, 200, 1];
    let frame = Frame::new(Kind::Request, 7, head.to_vec());
    two.write_all(&[&frame.header(), head.as_slice()].concat())
        .await
        .unwrap();
    let body = Frame::new(Kind::RequestBody, 7, b"abc".to_vec());
    two.write_all(&[&body.header(), b"abc".as_slice()].concat())
        .await
        .unwrap();
    loop {
        let frame = read_frame(&mut two).await.unwrap();
        if frame.kind == Kind::Reply {
            assert_eq!(
                (frame.call, frame.payload),
                (7, encode_head(&Reply::Unknown, 0).unwrap().into())
            );
            return;
        }
    }
}

#[tokio::test]
async fn who_asks_without_end_and_takes_no_answers_is_cut_off() {
    let (one, two) = tokio::io::duplex(64 << 10);
    let (_link, driver, _incoming) = new(one);
    let run = tokio::spawn(driver.run());
    let (_unread, mut writer) = tokio::io::split(two);
    // A request that nobody knows is refused at once.
    let frame = Frame::new(Kind::Request, 7, vec![0, 200, 1]);
    let frame = [frame.header().as_slice(), &frame.payload].concat();
    let asking = async {
        let (many, enough) = (frame.repeat(100), 2 * SOON_MAX / 100);
        for _ in 0..enough {
            if writer.write_all(&many).await.is_err() {
                return;
            }
        }
        panic!("all of them wait for someone to take them");
    };
    asking.await;
    assert!(matches!(run.await.unwrap(), Closed::Flooded));
}

#[tokio::test]
async fn a_newcomer_may_have_little_open() {
    let (one, two) = tokio::io::duplex(64 << 10);
    let (_link, driver, mut of_newcomer) = within(one, Bounds::NEWCOMER);
    tokio::spawn(driver.run());
    let (newcomer, _) = driven(two);
    let busy = |answer: Result<Answer, CallError>| assert_eq!(answer.unwrap().0, Reply::Busy);
    busy(newcomer.call(&STATS, Bytes::from_static(b"x"), LONG).await);
    let mut unanswered = Vec::new();
    for _ in 0..Bounds::NEWCOMER.open_max {
        let pending = newcomer.begin(&STATS, Bytes::new()).await.unwrap();
        unanswered.push((pending, of_newcomer.recv().await.unwrap().replier));
    }
    busy(newcomer.call(&STATS, Bytes::new(), LONG).await);
    drop(unanswered.pop());
    assert!(newcomer.begin(&STATS, Bytes::new()).await.is_ok());
    assert!(of_newcomer.recv().await.is_some(), "there is room again");
}

proptest! {
    /// Whatever frames arrive, nothing panics, and what is counted as open never exceeds its bounds.
    #[test]
    fn any_frames_are_taken_or_refused(
        frames in prop::collection::vec((0u8..12, 0u64..4, 0usize..12, prop::collection::vec(any::<u8>(), 0..20)), 0..60)
    ) {
        let mut table = Table::new(Bounds::MEMBER);
        let (reply, _replied) = oneshot::channel();
        table.begin(1, reply, mpsc::channel(OUTPUT_FRAMES_MAX).0);
        for (kind, call, body_bytes, junk) in frames {
            let mut header = [0; HEADER_BYTES];
            header[4] = kind;
            let Ok(Header { kind, .. }) = Header::read(&header) else { continue };
            let payload = match (kind, junk.len() % 2) {
                (Kind::Request, 0) => encode_head(&STATS, body_bytes).unwrap(),
                (Kind::Reply, 0) => encode_head(&Reply::Content, body_bytes).unwrap(),
                _ => junk,
            };
            if table.take(Frame::new(kind, call, payload)).is_err() {
                break;
            }
        }
    }
}
