import type {ExecutionContext, TestFn} from 'ava';

/**
 * What several tests of a file share, ended after the last. Machines take seconds to get ready, so that a life is told
 * in several tests, each of which begins where the one before has ended; after a failure the rest is skipped.
 */
export function shareScope(test: TestFn): {
	readonly scope: ExecutionContext;
	/** One step of the life. */
	readonly step: (title: string, run: (t: ExecutionContext) => Promise<void>) => void;
} {
	const ends: (() => unknown)[] = [];
	let failed: string | undefined;
	const log: string[] = [];
	const scope = {
		teardown: (end: () => unknown) => ends.push(end),
		log: (...lines: unknown[]) => log.push(lines.join(' ')),
		get passed() {
			return failed === undefined;
		},
	} as unknown as ExecutionContext;
	test.after.always('ends', async t => {
		for (const end of ends.reverse()) await end();
		if (log.length > 0) t.log(log.join('\n'));
	});
	return {
		scope,
		step: (title, run) =>
			test.serial(title, async t => {
				if (failed !== undefined) {
					t.log(`not tried: "${failed}" has failed`);
					t.pass();
					return;
				}
				try {
					await run(t);
					if (!t.passed) failed = title;
				} catch (error) {
					failed = title;
					throw error;
				}
			}),
	};
}
