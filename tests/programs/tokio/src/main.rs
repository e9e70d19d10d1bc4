//! What tokio asks of its system: TCP and UDP on loopback, UNIX sockets, timers, blocking threads, files and signals.

use std::time::Duration;

use tokio::{
    fs,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream},
    process::Command,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task,
    time::{interval, timeout},
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

async fn tcp() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = task::spawn(async move {
        for _ in 0..100 {
            let (mut stream, _) = listener.accept().await?;
            task::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
        Ok::<_, std::io::Error>(())
    });
    let mut clients = task::JoinSet::new();
    for number in 0..100usize {
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            let sent = vec![number as u8; 1 + number * 700];
            let (mut read, mut write) = stream.split();
            let mut back = Vec::new();
            let writing = async {
                write.write_all(&sent).await?;
                write.shutdown().await
            };
            let (written, received) = tokio::join!(writing, read.read_to_end(&mut back));
            written?;
            received?;
            Ok::<_, std::io::Error>(back == sent)
        });
    }
    let mut same = 0;
    while let Some(client) = clients.join_next().await {
        same += usize::from(client??);
    }
    server.await??;
    println!("tcp {same}");
    Ok(())
}

async fn datagrams() -> Outcome {
    let (one, two) = (UdpSocket::bind("127.0.0.1:0").await?, UdpSocket::bind("127.0.0.1:0").await?);
    one.send_to(b"datagram", two.local_addr()?).await?;
    let mut buffer = [0; 64];
    let (bytes, from) = two.recv_from(&mut buffer).await?;
    println!("udp {} {}", String::from_utf8_lossy(&buffer[..bytes]), from == one.local_addr()?);
    let silent = timeout(Duration::from_millis(20), two.recv_from(&mut buffer)).await;
    println!("silence {}", silent.is_err());
    Ok(())
}

async fn local() -> Outcome {
    let listener = UnixListener::bind("/tmp/tokio.sock")?;
    let client = task::spawn(async {
        let mut stream = UnixStream::connect("/tmp/tokio.sock").await?;
        stream.write_all(b"hello").await
    });
    let (mut stream, _) = listener.accept().await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    client.await??;
    println!("unix {text}");
    Ok(())
}

async fn threads_and_files() -> Outcome {
    let (sender, mut receiver) = mpsc::channel(8);
    for number in 0..20u64 {
        let sender = sender.clone();
        task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(5));
            sender.blocking_send((0..=number).sum::<u64>())
        });
    }
    drop(sender);
    let mut sum = 0;
    while let Some(part) = receiver.recv().await {
        sum += part;
    }
    println!("blocking {sum}");
    fs::write("/tmp/file", vec![7; 1_000_000]).await?;
    println!("file {}", fs::read("/tmp/file").await?.len());
    let mut ticks = interval(Duration::from_millis(2));
    for _ in 0..20 {
        ticks.tick().await;
    }
    println!("ticked");
    Ok(())
}

async fn process() -> Outcome {
    let mut hangups = signal(SignalKind::user_defined1())?;
    match Command::new("/bin/true").status().await {
        Ok(status) => println!("second process ended: {status}"),
        Err(error) => println!("second process refused: {error}"),
    }
    let waited = timeout(Duration::from_millis(20), hangups.recv()).await;
    println!("no signal {}", waited.is_err());
    Ok(())
}

#[tokio::main(worker_threads = 4)]
async fn main() -> Outcome {
    tcp().await?;
    datagrams().await?;
    local().await?;
    threads_and_files().await?;
    process().await
}
