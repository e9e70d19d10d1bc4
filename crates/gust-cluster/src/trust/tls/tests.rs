use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::trust::JoinKey;

fn node(dir: &Path, authority: &Authority, name: &str) -> Identity {
    let name: NodeName = name.parse().unwrap();
    let key = JoinKey::new().unwrap();
    let certificate = authority.certify(&name, &key.csr().unwrap()).unwrap();
    let directory = dir.join(name.as_str());
    Identity::keep(
        &directory,
        "c:1",
        name,
        &key,
        certificate.to_vec(),
        authority.certificate(),
    )
    .unwrap();
    Identity::load(&directory).unwrap()
}

/// Connects; what the server saw of the client, when both sides were content.
async fn meet(
    connector: TlsConnector,
    name: ServerName<'static>,
    acceptor: TlsAcceptor,
) -> Option<Option<CertificateDer<'static>>> {
    let (one, two) = tokio::io::duplex(64 << 10);
    let client = async {
        let mut stream = connector.connect(name, one).await.ok()?;
        // The refusal of a client's certificate arrives after its side of the handshake.
        stream.write_all(b"hello").await.ok()?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await.ok()?;
        Some(())
    };
    let server = async {
        let mut stream = acceptor.accept(two).await.ok()?;
        let mut said = [0; 5];
        stream.read_exact(&mut said).await.ok()?;
        stream.write_all(b"ok").await.ok()?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(PROTOCOLS[0]));
        Some(peer_certificate(stream.get_ref().1))
    };
    let (client, server) = tokio::join!(client, server);
    client.and(server)
}

#[tokio::test]
async fn members_know_each_other_and_no_one_else() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(&dir.path().join("ca")).unwrap();
    let other = Authority::open(&dir.path().join("other")).unwrap();
    let (a, b) = (
        node(dir.path(), &authority, "a"),
        node(dir.path(), &authority, "b"),
    );
    let stranger = node(dir.path(), &other, "stranger");
    let (a_name, b_name) = (a.name().clone(), b.name().clone());
    let control = Trust::of_control(&authority, &Revoked::default()).unwrap();
    let of = |identity: &Identity| Trust::of_node(identity, &Revoked::default()).unwrap();
    let connector = |trust: &Trust| trust.connector().unwrap();

    let seen = meet(connector(&of(&a)), control_name(), control.acceptor()).await;
    let certificate = seen.flatten().expect("a node is known to the control plane");
    assert!(certified_name_is(&certificate, &a_name) && !certified_name_is(&certificate, &b_name));
    let seen = meet(
        connector(&of(&a)),
        b_name.server_name().unwrap(),
        of(&b).acceptor(),
    )
    .await;
    assert!(certified_name_is(
        &seen.flatten().expect("nodes know each other"),
        &a_name
    ));

    // A node is neither the control plane nor another node.
    assert!(
        meet(connector(&of(&a)), control_name(), of(&b).acceptor())
            .await
            .is_none()
    );
    assert!(
        meet(
            connector(&of(&a)),
            a_name.server_name().unwrap(),
            of(&b).acceptor()
        )
        .await
        .is_none()
    );
    // A member of another cluster, on either side.
    assert!(
        meet(connector(&of(&stranger)), control_name(), control.acceptor())
            .await
            .is_none()
    );
    let strange = Trust::of_control(&other, &Revoked::default()).unwrap();
    assert!(
        meet(connector(&of(&a)), control_name(), strange.acceptor())
            .await
            .is_none()
    );

    // A newcomer sees whom its token says, is let in by the control plane as no one, and not at all by a node.
    let newcomer = |authority: &Authority| Trust::newcomer(authority.fingerprint()).unwrap();
    assert!(matches!(
        meet(newcomer(&authority), control_name(), control.acceptor()).await,
        Some(None)
    ));
    assert!(
        meet(newcomer(&other), control_name(), control.acceptor())
            .await
            .is_none()
    );
    assert!(
        meet(newcomer(&authority), control_name(), strange.acceptor())
            .await
            .is_none()
    );
    assert!(
        meet(
            newcomer(&authority),
            b_name.server_name().unwrap(),
            of(&b).acceptor()
        )
        .await
        .is_none()
    );
    // A node's certificate with the authority's beside it does not make it the control plane.
    let mut posing = (*of(&b).server).clone();
    let resolver = rustls::sign::CertifiedKey::from_der(
        vec![b.certificate(), authority.certificate().clone()],
        b.key(),
        &provider(),
    );
    posing.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(resolver.unwrap()));
    assert!(
        meet(
            newcomer(&authority),
            control_name(),
            TlsAcceptor::from(Arc::new(posing))
        )
        .await
        .is_none()
    );
}

#[tokio::test]
async fn a_renewed_certificate_is_the_same_node() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(&dir.path().join("ca")).unwrap();
    let mut a = node(dir.path(), &authority, "a");
    assert!(!a.wants_renewal());
    let before = a.certificate();
    let certificate = authority.certify(a.name(), &a.csr().unwrap()).unwrap();
    a.renewed(certificate.to_vec()).unwrap();
    let again = Identity::load(&dir.path().join("a")).unwrap();
    assert_ne!(again.certificate(), before);
    let control = Trust::of_control(&authority, &Revoked::default()).unwrap();
    let connector = Trust::of_node(&again, &Revoked::default())
        .unwrap()
        .connector()
        .unwrap();
    let seen = meet(connector, control_name(), control.acceptor()).await;
    assert!(certified_name_is(&seen.flatten().unwrap(), a.name()));
    assert_eq!(
        (again.control(), again.fingerprint() == authority.fingerprint()),
        ("c:1", true)
    );
}

#[test]
fn the_control_planes_name_is_one() {
    assert!(matches!(control_name(), ServerName::DnsName(_)));
}

#[tokio::test]
async fn who_has_been_thrown_out_is_let_in_by_no_one() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(&dir.path().join("ca")).unwrap();
    let (a, b) = (
        node(dir.path(), &authority, "a"),
        node(dir.path(), &authority, "b"),
    );
    let revoked = Revoked::default();
    let control = Trust::of_control(&authority, &revoked).unwrap();
    let of = |identity: &Identity| Trust::of_node(identity, &revoked).unwrap();
    let to_control = |identity: &Identity| {
        meet(
            of(identity).connector().unwrap(),
            control_name(),
            control.acceptor(),
        )
    };
    let certificate = to_control(&a).await.flatten().expect("a member");
    revoked.add([a.name().clone()]);
    // Returns: it has happened.
    revoked.until(&certificate).await;
    assert!(to_control(&a).await.is_none(), "the control plane");
    let b_name = b.name().server_name().unwrap();
    assert!(
        meet(of(&a).connector().unwrap(), b_name, of(&b).acceptor())
            .await
            .is_none(),
        "another node"
    );
    assert!(to_control(&b).await.is_some(), "others are members still");
    let newcomer = Trust::newcomer(authority.fingerprint()).unwrap();
    assert!(meet(newcomer, control_name(), control.acceptor()).await.is_some());
}
