//! Who has no right certificate gets nowhere, whichever side it is on.

use super::{Subject, bind};
use crate::Identity;
use crate::testing::Issuer;
use crate::transport::{NetError, PeerConn as _};

pub(crate) async fn wrong_certificates_lead_nowhere_on_both_sides<T: Subject>() {
    let mut issuer = Issuer::new();
    let bad = issuer.bad("agent", "proxy");
    let good = issuer.identity("origin");
    for (what, identity) in &bad {
        let (acceptor, info) = bind::<T>(&good);
        let (dialer, _) = bind::<T>(identity);
        let error = dialer.dial(&info).await.unwrap_err();
        assert!(matches!(error, NetError::Dial { .. }), "{what}: {error}");
        let told = error.to_string();
        assert_eq!(
            told.contains("of role agent, origin is needed"),
            what.ends_with("role"),
            "{told}"
        );
        assert_eq!(acceptor.stats().accepted, 0, "{what}");

        let (acceptor, info) = bind::<T>(identity);
        let (dialer, _) = bind::<T>(&good);
        let error = dialer.dial(&info).await.unwrap_err();
        assert!(matches!(error, NetError::Dial { .. }), "{what}: {error}");
        assert_eq!(dialer.stats().dialed, 0, "{what}");
        drop(acceptor);
    }
    // Two of them as dialers, and as acceptors.
    assert!(good.status().wrong_roles >= 4);
    let (acceptor, info) = bind::<T>(&good);
    let (dialer, _) = bind::<T>(&issuer.identity("agent"));
    let (ours, theirs) = tokio::join!(dialer.dial(&info), acceptor.accept());
    assert!(ours.is_ok() && theirs.is_ok());
}

pub(crate) async fn who_is_revoked_is_cut_off_and_not_let_in_again<T: Subject>() {
    for dialer_is_revoked in [true, false] {
        let mut issuer = Issuer::new();
        let (one, two) = (issuer.pem("agent"), issuer.pem("origin"));
        let (dials, accepts) = (Identity::unchecked(&one), Identity::unchecked(&two));
        let (dialer, _) = bind::<T>(&dials);
        let (acceptor, info) = bind::<T>(&accepts);
        let (ours, theirs) = tokio::join!(dialer.dial(&info), acceptor.accept());
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        if dialer_is_revoked {
            accepts.take(&issuer.revoke(&one.cert, &two)).unwrap();
        } else {
            dials.take(&issuer.revoke(&two.cert, &one)).unwrap();
        }
        let (told, closed) = tokio::join!(ours.recv(), theirs.recv());
        let (told, closed) = (told.unwrap_err(), closed.unwrap_err());
        let (lost, own) = if dialer_is_revoked {
            (told, closed)
        } else {
            (closed, told)
        };
        assert!(lost.to_string().contains("revoked"), "{lost}");
        assert!(matches!(own, NetError::Closed), "{own}");
        let again = dialer.dial(&info).await.unwrap_err();
        assert!(matches!(again, NetError::Dial { .. }), "{again}");
    }
}

pub(crate) async fn a_certificate_that_is_renewed_serves_those_to_come<T: Subject>() {
    let issuer = Issuer::new();
    let (one, two) = (issuer.pem("agent"), issuer.pem("origin"));
    let (dials, accepts) = (Identity::unchecked(&one), Identity::unchecked(&two));
    let (dialer, _) = bind::<T>(&dials);
    let (acceptor, info) = bind::<T>(&accepts);
    let (ours, theirs) = tokio::join!(dialer.dial(&info), acceptor.accept());
    let (ours, theirs) = (ours.unwrap(), theirs.unwrap());

    // Another authority for both, one after the other, with both trusted meanwhile.
    let next = Issuer::new();
    let (old_ca, new_ca) = (issuer.ca.to_pem().0, next.ca.to_pem().0);
    let mut both = [(dials, one), (accepts, two)];
    for (identity, pem) in &mut both {
        pem.ca = format!("{old_ca}{new_ca}");
        identity.take(pem).unwrap();
    }
    for (identity, pem) in &mut both {
        let hour = std::time::Duration::from_hours(1);
        pem.cert = next.ca.adopt(&pem.cert, &old_ca, hour).unwrap();
        identity.take(pem).unwrap();
        let (again, taken) = tokio::join!(dialer.dial(&info), acceptor.accept());
        assert!(again.is_ok() && taken.is_ok());
    }
    for (identity, pem) in &mut both {
        pem.ca.clone_from(&new_ca);
        identity.take(pem).unwrap();
    }
    let (again, taken) = tokio::join!(dialer.dial(&info), acceptor.accept());
    assert!(again.is_ok() && taken.is_ok());
    // What was open goes on.
    ours.send(super::request(7)).await.unwrap();
    assert_eq!(theirs.recv().await.unwrap(), super::request(7));
}
