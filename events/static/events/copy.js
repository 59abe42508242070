// A button with data-copy copies the text of the element that has this id.
"use strict";

async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
    } catch {
        // Browsers open the clipboard over https and on this machine only. What is selected can be copied by hand.
        getSelection().selectAllChildren(source);
        button.textContent = "Selected: press Ctrl-C";
    }
}

for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
}
