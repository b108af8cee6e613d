/** Why the application is not healthy, in words for the WorkloadEntry. */
export class ProbeFailure extends Error {
	override readonly name = 'ProbeFailure';
}
