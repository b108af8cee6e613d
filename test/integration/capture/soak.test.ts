import test from 'ava';
import {renderSoak, soak} from '../../soak/soak.ts';
import {isLong} from '../../support/mesh.ts';
import {skippedWithout} from '../../support/netns.ts';

const connections = isLong ? 1_000_000 : 5000;

test.serial(
	`soak › ${connections} short connections while agents and Envoys crash, are upgraded and replaced: none passes Envoy by`,
	async t => {
		if (skippedWithout(t)) return;
		t.timeout(isLong ? 3_600_000 : 300_000);
		const report = await soak({
			t,
			...{seed: 1, connections, perSecond: isLong ? 3000 : 1000, everyMs: isLong ? 4000 : 300},
			events: [
				...(['agent killed', 'envoy killed', 'both killed', 'upgrade with other rules'] as const),
				...(['envoy replaced', "the other side's envoy killed"] as const),
			],
		});
		t.log(renderSoak(report));
		t.deepEqual(report.problems, []);
		t.true(report.outbound.answered >= connections);
	},
);
