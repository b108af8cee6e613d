import {type Check, type Finding, fail, ok, skip} from './types.ts';

/** What an agent that runs says of itself: its gates. */
export const agent: Check = {
	name: 'agent',
	run: async ({report, unreachable, controlSocketPath}) => {
		if (!report) {
			return /not running/.test(unreachable?.message ?? '')
				? [skip(`none answers at ${controlSocketPath}`)]
				: [fail(unreachable!.message, unreachable!.hint ?? 'see its log')];
		}
		const closed = report.gates.filter(({open}) => !open);
		if (closed.length === 0 && report.ready) return [ok(`ready, pid ${report.pid}, version ${report.version}`)];
		if (report.stopping) return [fail(`pid ${report.pid} is stopping`, 'wait, or start it again')];
		return closed.map(
			({name, reason, hint}): Finding =>
				fail(`gate ${name}: ${reason}`, hint ?? 'it goes on by itself; the checks below say more'),
		);
	},
};
