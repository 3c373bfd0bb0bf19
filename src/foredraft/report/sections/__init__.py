"""One file per part of the page: each takes what was found and gives a `Section`, or None where its records are not there."""
