// Swagger UI is dark where <html> has the class dark-mode. Loaded in <head>, before anything is painted.
"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();
