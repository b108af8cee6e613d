/** When to rotate, apart from the loop that does it. Times are wall-clock milliseconds or Dates as their names say. */
export interface RotationPlan {
	/** Share of the life after which to rotate. */
	readonly share: number;
	/** ± share of the life, so that a fleet booted together does not reach the CA together. */
	readonly jitter: number;
	/** Life to be left at the latest, for riding out a control plane that is away. 0 = off. */
	readonly rideOutMs: number;
}

/** However long the ride-out wanted, a certificate is used for a tenth of its life: less would only load the CA. */
const leastShare = 0.1;
/** However late the share asked for, some life is left for retries. */
const mostShare = 0.95;

/**
 * When to ask for the next certificate: after `share` of its life ± jitter, or early enough to leave `rideOutMs`, but
 * not within the first tenth of its life. Life counts from receipt, since CAs date certificates back.
 * @param random - in [0, 1)
 */
export function rotateAt(
	{receivedAt, notBefore, notAfter}: {receivedAt: Date; notBefore: Date; notAfter: Date},
	{share, jitter, rideOutMs}: RotationPlan,
	random: number,
): Date {
	const end = notAfter.getTime();
	// A receipt outside the certificate's life was noted with a wrong clock.
	const isPlausible = receivedAt >= notBefore && receivedAt < notAfter;
	const start = (isPlausible ? receivedAt : notBefore).getTime();
	const life = end - start;
	const planned = start + life * between(share, jitter, random);
	const latest = rideOutMs > 0 ? end - rideOutMs - life * jitter * random : end;
	const earliest = start + life * (leastShare + (rideOutMs > 0 ? jitter * random : 0));
	return new Date(Math.round(Math.min(Math.max(Math.min(planned, latest), earliest), start + life * mostShare)));
}

/** In `share` ± `jitter` as far as that is allowed. What is not is cut off before the draw: after it, many would meet at the bound. */
function between(share: number, jitter: number, random: number): number {
	const middle = Math.min(Math.max(share, leastShare), mostShare);
	const [from, to] = [Math.max(middle - jitter, leastShare), Math.min(middle + jitter, mostShare)];
	return from + (to - from) * random;
}
