/** A part of the agent that is working. Only a start function can make one. */
export interface Running {
	/** Settles when the part ends by itself: resolves if that is normal, rejects with why. */
	readonly finished: Promise<void>;
	/** Ends it in good order and frees what it holds. Safe to call again. */
	stop(): Promise<void>;
}

/** A promise that never settles, for parts that end only when told to. */
export const never: Promise<never> = new Promise(() => {});
