//! What surrounds a function: aliases, reserved concurrency, how its asynchronous events are retried.

use uuid::Uuid;

use crate::{
    change::Next,
    clock,
    concurrency::UNRESERVED_MIN,
    control::Control,
    error::{ControlError, Missing},
    ids::{AliasName, FunctionName, Qualifier, Target, VersionNumber},
    model::{Alias, EventConfig, Function},
    ops::{self, AliasChange, EventConfigChange},
};

impl Control {
    /// Makes an alias.
    ///
    /// # Errors
    /// When there is one, or a version that it names does not exist.
    pub async fn create_alias(
        &self,
        function: &FunctionName,
        name: AliasName,
        version: VersionNumber,
        description: String,
        additional: Option<(u64, f64)>,
    ) -> Result<Alias, ControlError> {
        let place = self.config().place.clone();
        let alias = Alias {
            version,
            description,
            additional,
            revision_id: Uuid::new_v4(),
        };
        let entered = alias.clone();
        let step = move |function: &Function| {
            Ok((
                Next::Put(ops::create_alias(function, &place, &name, entered)?),
                (),
            ))
        };
        self.change_function(function, step).await?;
        Ok(alias)
    }

    /// Changes an alias.
    ///
    /// # Errors
    /// When there is none, or it is not what the caller expects.
    pub async fn update_alias(
        &self,
        function: &FunctionName,
        name: AliasName,
        change: AliasChange,
    ) -> Result<Alias, ControlError> {
        let place = self.config().place.clone();
        let step = move |function: &Function| {
            let next = ops::update_alias(function, &place, &name, change)?;
            let alias = next.shared.aliases[&name].clone();
            Ok((Next::Put(next), alias))
        };
        self.change_function(function, step).await
    }

    /// Deletes an alias; one that does not exist is none the worse.
    ///
    /// # Errors
    /// When there is no such function.
    pub async fn delete_alias(&self, function: &FunctionName, name: AliasName) -> Result<(), ControlError> {
        let step = move |function: &Function| {
            if !function.shared.aliases.contains_key(&name) {
                return Ok((Next::Same, ()));
            }
            let next = ops::with_shared(function, |shared| {
                shared.aliases.remove(&name);
                shared.event_configs.remove(&Qualifier::Alias(name.clone()));
            });
            Ok((Next::Put(next), ()))
        };
        self.change_function(function, step).await
    }

    /// An alias.
    ///
    /// # Errors
    /// When there is none.
    pub fn alias(&self, function: &FunctionName, name: &AliasName) -> Result<Alias, ControlError> {
        let function = self.function(function)?;
        let alias = function.shared.aliases.get(name).cloned();
        alias.ok_or_else(|| ops::alias_not_found(&function, &self.config().place, name))
    }

    /// Reserves concurrency for a function, or lifts the reservation.
    ///
    /// # Errors
    /// When there is no such function, or too little would be left for the others.
    pub async fn reserve_concurrency(
        &self,
        name: &FunctionName,
        reserved: Option<u32>,
    ) -> Result<(), ControlError> {
        let control = self.clone();
        let step_name = name.clone();
        let step = move |function: &Function| {
            if let Some(reserved) = reserved {
                let others = control.book().reserved_by_others(&step_name);
                let left = control
                    .config()
                    .limits
                    .concurrency
                    .checked_sub(others.saturating_add(reserved));
                if left.is_none_or(|left| left < UNRESERVED_MIN) {
                    return Err(ControlError::InvalidParameter(format!(
                        "Specified ReservedConcurrentExecutions for function decreases account's \
                         UnreservedConcurrentExecution below its minimum value of [{UNRESERVED_MIN}]."
                    )));
                }
            }
            let next = ops::with_shared(function, |shared| shared.reserved_concurrency = reserved);
            Ok((Next::Put(next), ()))
        };
        self.change_function(name, step).await?;
        self.book().reserve(name, reserved);
        Ok(())
    }

    /// Concurrency that no function has reserved.
    pub fn unreserved_concurrency(&self) -> u32 {
        self.book().unreserved_max()
    }

    /// Size of all packages of all versions, in bytes.
    pub fn code_bytes(&self) -> u64 {
        self.read(|published| published.account.code_bytes())
    }

    /// Sets how asynchronous events of a target are retried.
    ///
    /// # Errors
    /// When there is no such version or alias.
    pub async fn set_event_config(
        &self,
        target: &Target,
        change: EventConfigChange,
    ) -> Result<EventConfig, ControlError> {
        self.version(target)?;
        let qualifier = target.qualifier_or_latest().clone();
        let step = move |function: &Function| {
            let next = ops::set_event_config(function, &qualifier, change, clock::unix_ms());
            let config = next.shared.event_configs[&qualifier];
            Ok((Next::Put(next), config))
        };
        self.change_function(&target.name, step).await
    }

    /// How asynchronous events of a target are retried, when that has been set.
    ///
    /// # Errors
    /// When there is no such function, or nothing has been set.
    pub fn event_config(&self, target: &Target) -> Result<EventConfig, ControlError> {
        let function = self.function(&target.name)?;
        let config = function
            .shared
            .event_configs
            .get(target.qualifier_or_latest())
            .copied();
        config.ok_or_else(|| self.no_event_config(target))
    }

    /// Removes the settings of asynchronous events.
    ///
    /// # Errors
    /// When there is no such function, or nothing has been set.
    pub async fn delete_event_config(&self, target: &Target) -> Result<(), ControlError> {
        self.event_config(target)?;
        let qualifier = target.qualifier_or_latest().clone();
        let step = move |function: &Function| {
            let next = ops::with_shared(function, |shared| {
                shared.event_configs.remove(&qualifier);
            });
            Ok((Next::Put(next), ()))
        };
        self.change_function(&target.name, step).await
    }

    fn no_event_config(&self, target: &Target) -> ControlError {
        let arn = self
            .config()
            .place
            .qualified_arn(&target.name, target.qualifier_or_latest());
        ControlError::NotFound {
            kind: Missing::EventConfig,
            arn,
        }
    }
}
