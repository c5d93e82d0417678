"""Three party processes: what is published to them, what each of them runs, and how they speak to each other."""
