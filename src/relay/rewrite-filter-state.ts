import type {FieldReader} from '../proto/wire.ts';
import {category} from './extensions.ts';
import type {Entry} from './rewrite-entries.ts';
import {noteRemoval, type Surgery, withinAny} from './rewrite-surgery.ts';

const istioFactory = 'istio.hashable_string';
const stockFactory = Buffer.from('envoy.hashable_string');

/**
 * Values of a set_filter_state filter (HTTP or network) that are made by Istio's object factory are made by Envoy's
 * own instead, which does the same. Config: values 1; FilterStateValue: factory_key 6.
 */
export function rewriteFilterState(surgery: Surgery, field: FieldReader, entry: Entry, typedConfig: number): void {
	// Inside a TypedStruct the key is JSON-like text; Envoy then names it when it refuses.
	if (!surgery.policy.isHashableStringRenamed || entry.held.type !== entry.held.realType) return;
	surgery.edits.within(field, filter => {
		while (filter.next()) {
			if (filter.number === typedConfig) withinAny(surgery, filter, config => rewriteValues(surgery, config));
		}
	});
}

function rewriteValues(surgery: Surgery, config: FieldReader): void {
	while (config.next()) {
		if (config.number !== 1) continue;
		surgery.edits.within(config, value => {
			while (value.next()) {
				if (value.number !== 6 || value.string() !== istioFactory) continue;
				surgery.edits.replaceValue(value, stockFactory);
				noteRemoval(
					surgery,
					category.filterState,
					istioFactory,
					'',
					"nothing: Envoy's own envoy.hashable_string does the same",
				);
			}
		});
	}
}
