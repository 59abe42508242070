// Offers the rows that came in since the list was shown: "12 new". Nothing that is being read moves.
"use strict";

const offer = document.getElementById("newer");

if (offer) {
    let after = offer.dataset.newest;
    let count = 0;
    let timer;

    const look = async () => {
        const address = new URL(offer.href);
        address.searchParams.set("newer_than", after);
        const answer = await fetch(address, { headers: { Accept: "application/json" }, redirect: "manual" });
        // Logged out, or no longer allowed to see the list: asking again changes nothing.
        if (answer.type === "opaqueredirect" || answer.status === 403) return false;
        if (!answer.ok) return true;
        const found = await answer.json();
        after = found.through;
        count += found.count;
        if (count) {
            offer.textContent = count < found.most ? `${count} new` : `${found.most}+ new`;
            offer.hidden = false;
        }
        return count < found.most;
    };

    const wait = () => {
        clearTimeout(timer);
        if (document.hidden) return;
        timer = setTimeout(async () => {
            // A service that does not answer may do so again.
            if (await look().catch(() => true)) wait();
            else document.removeEventListener("visibilitychange", wait);
        }, Number(offer.dataset.milliseconds));
    };

    document.addEventListener("visibilitychange", wait);
    wait();
}
