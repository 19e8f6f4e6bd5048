"""The commands of `stic`, one file a group; each imports the stages it needs when it runs."""
