"""From the updates of a round's clients to their mean: plain, robust, summed under masks, differentially private."""
